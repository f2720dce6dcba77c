"""What a sandbox has mounted is rewritten in place: whoever reads it meanwhile, or after the writer was killed, finds whole lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import pytest

from netbox.engine import connecting
from netbox.engine.context import Context
from netbox.network.plan import NetworkPlan
from netbox.settings import Settings

LONG = "127.0.0.1\tlocalhost\n10.0.0.2\tbox\n10.0.1.2\tbox\n"
SHORT = "127.0.0.1\tlocalhost\n10.0.0.2\tbox\n"


class Killed(BaseException):
    """SIGKILL."""


@pytest.mark.parametrize(("old", "new"), [(LONG, SHORT), (SHORT, LONG)], ids=["shorter", "longer"])
def test_a_file_of_a_killed_writer_has_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    settings = Settings(root=str(tmp_path / "root"), run=str(tmp_path / "run"))
    plan = NetworkPlan(mode="bridge", sandbox_id="ab" * 32, hostname="box")
    path = Path(settings.sandbox_run(plan.sandbox_id), "hosts")
    path.parent.mkdir(parents=True)
    path.write_text(old)
    kill = [True]

    class Writer:
        """A file whose writer is killed before it cuts off the rest."""

        def __init__(self, file: BinaryIO) -> None:
            self._file = file

        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def truncate(self, *size: int) -> None:
            self._file.flush()
            if kill:
                raise Killed
            self._file.truncate(*size)

    def opened(*arguments: Any, **options: Any) -> Writer:
        return Writer(open(*arguments, **options))

    monkeypatch.setattr(connecting, "open", opened, raising=False)
    context = Context(settings)
    with pytest.raises(Killed):
        connecting._rewrite(context, plan, "hosts", lambda _: new)
    left = [line for line in path.read_text().splitlines() if line]
    assert left == new.splitlines()
    kill.clear()
    connecting._rewrite(context, plan, "hosts", lambda text: "".join(f"{line}\n" for line in text.splitlines() if line))
    assert path.read_text() == new
