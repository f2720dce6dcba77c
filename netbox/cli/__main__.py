"""``python -m netbox.cli``."""

from netbox.cli.main import main

if __name__ == "__main__":
    main()
