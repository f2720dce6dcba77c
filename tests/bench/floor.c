/* The kernel's floor: what a start costs when nothing but system calls is paid for.
 *
 * Makes the same objects as netbox for "run busybox true": six namespaces, a cgroup in each hierarchy, an overlay, a veth pair on a bridge
 * with address and default route, a new root. Then static busybox runs "true", its exit is seen, and everything is removed. No firewall.
 *
 * floor BUSYBOX LOWER WORK BRIDGE v1|v2 CGROUP...     each CGROUP a directory that exists, one per hierarchy
 * For every line on stdin it does one round and prints two times in nanoseconds: start to exit known, start to everything removed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

static const char *busybox, *lower, *work;
static int version, hierarchies;
static char **cgroups;
static int bridge_index, netlink_fd;

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void put(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, strlen(value)) < 0)
        die(path);
    close(fd);
}

/* --- rtnetlink --- */

struct message {
    size_t length;
    char data[4096] __attribute__((aligned(4)));
};

static struct nlmsghdr *begin(struct message *message, int type, int flags, const void *header, size_t size)
{
    struct nlmsghdr *start = (struct nlmsghdr *)(message->data + message->length);
    memset(start, 0, NLMSG_SPACE(size));
    start->nlmsg_type = type;
    start->nlmsg_flags = NLM_F_REQUEST | flags;
    memcpy(NLMSG_DATA(start), header, size);
    message->length += NLMSG_SPACE(size);
    return start;
}

static struct rtattr *attribute(struct message *message, int type, const void *value, size_t size)
{
    struct rtattr *start = (struct rtattr *)(message->data + message->length);
    start->rta_type = type;
    start->rta_len = RTA_LENGTH(size);
    if (size)
        memcpy(RTA_DATA(start), value, size);
    message->length += RTA_SPACE(size);
    return start;
}

static void end(struct message *message, struct rtattr *start)
{
    start->rta_len = message->data + message->length - (char *)start;
}

static void finish(struct message *message, struct nlmsghdr *start)
{
    start->nlmsg_len = message->data + message->length - (char *)start;
}

/* Sends all messages at once; each asks for its acknowledgement, and all are read. */
static void exchange(int fd, struct message *message, int count, const char *what)
{
    char answer[8192];
    if (send(fd, message->data, message->length, 0) < 0)
        die(what);
    while (count > 0) {
        ssize_t length = recv(fd, answer, sizeof answer, 0);
        if (length < 0)
            die(what);
        for (struct nlmsghdr *one = (struct nlmsghdr *)answer; NLMSG_OK(one, (size_t)length); one = NLMSG_NEXT(one, length)) {
            if (one->nlmsg_type != NLMSG_ERROR)
                continue;
            errno = -((struct nlmsgerr *)NLMSG_DATA(one))->error;
            if (errno)
                die(what);
            count--;
        }
    }
}

static int netlink(void)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        die("netlink");
    return fd;
}

static void add_address(struct message *message, int index, const char *address)
{
    struct ifaddrmsg header = {.ifa_family = AF_INET, .ifa_prefixlen = 16, .ifa_index = index};
    in_addr_t value = inet_addr(address);
    struct nlmsghdr *start = begin(message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_ACK, &header, sizeof header);
    attribute(message, IFA_LOCAL, &value, sizeof value);
    attribute(message, IFA_ADDRESS, &value, sizeof value);
    finish(message, start);
}

static void set_up(struct message *message, int index)
{
    struct ifinfomsg header = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    finish(message, begin(message, RTM_NEWLINK, NLM_F_ACK, &header, sizeof header));
}

static void make_bridge(const char *name)
{
    struct message message = {0};
    struct ifinfomsg header = {0};
    struct nlmsghdr *start = begin(&message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &header, sizeof header);
    attribute(&message, IFLA_IFNAME, name, strlen(name) + 1);
    struct rtattr *info = attribute(&message, IFLA_LINKINFO, NULL, 0);
    attribute(&message, IFLA_INFO_KIND, "bridge", 6);
    end(&message, info);
    finish(&message, start);
    exchange(netlink_fd, &message, 1, "bridge");
    bridge_index = if_nametoindex(name);
    message.length = 0;
    add_address(&message, bridge_index, "10.213.0.1");
    set_up(&message, bridge_index);
    exchange(netlink_fd, &message, 2, "bridge address");
}

static void remove_bridge(void)
{
    struct message message = {0};
    struct ifinfomsg header = {.ifi_index = bridge_index};
    finish(&message, begin(&message, RTM_DELLINK, NLM_F_ACK, &header, sizeof header));
    exchange(netlink_fd, &message, 1, "bridge removal");
}

/* One request: both ends, the bridge, the peer's name and namespace, and up. */
static void make_veth(int number, pid_t pid)
{
    struct message message = {0};
    char name[IFNAMSIZ];
    uint32_t master = bridge_index, namespace_of = pid;
    struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP}, peer_header = {0};
    snprintf(name, sizeof name, "floor%d", number);
    struct nlmsghdr *start = begin(&message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &up, sizeof up);
    attribute(&message, IFLA_IFNAME, name, strlen(name) + 1);
    attribute(&message, IFLA_MASTER, &master, sizeof master);
    struct rtattr *info = attribute(&message, IFLA_LINKINFO, NULL, 0);
    attribute(&message, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = attribute(&message, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = attribute(&message, VETH_INFO_PEER, &peer_header, sizeof peer_header);
    attribute(&message, IFLA_IFNAME, "eth0", 5);
    attribute(&message, IFLA_NET_NS_PID, &namespace_of, sizeof namespace_of);
    end(&message, peer);
    end(&message, data);
    end(&message, info);
    finish(&message, start);
    exchange(netlink_fd, &message, 1, "veth");
}

/* --- the sandbox --- */

static void configure_network(void)
{
    struct message message = {0};
    int fd = netlink(), index = if_nametoindex("eth0");
    uint32_t device = index;
    in_addr_t gateway = inet_addr("10.213.0.1");
    struct rtmsg route = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC, .rtm_type = RTN_UNICAST};
    set_up(&message, 1);
    add_address(&message, index, "10.213.0.2");
    set_up(&message, index);
    struct nlmsghdr *start = begin(&message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_ACK, &route, sizeof route);
    attribute(&message, RTA_GATEWAY, &gateway, sizeof gateway);
    attribute(&message, RTA_OIF, &device, sizeof device);
    finish(&message, start);
    exchange(fd, &message, 4, "address and route");
    close(fd);
}

static void sandbox(const char *directory, const int ready_pipe[2])
{
    char options[3 * 4096], merged[4096], path[4096], byte;
    int ready = ready_pipe[0];
    char *argv[] = {"true", NULL}, *environment[] = {"PATH=/bin", NULL};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ready_pipe[1]); /* the end of the parent is the end of the wait below */
    snprintf(merged, sizeof merged, "%s/merged", directory);
    for (int i = 0; version == 1 && i < hierarchies; i++) {
        snprintf(path, sizeof path, "%s/floor/tasks", cgroups[i]);
        put(path, "0");
    }
    if (unshare(CLONE_NEWCGROUP)) /* after joining, so that its root is the sandbox's own cgroup */
        die("unshare");
    sethostname("floor", 5);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, directory, directory);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("overlay", merged, "overlay", 0, options) || chdir(merged))
        die("overlay");
    if (mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        die("proc");
    if (mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755"))
        die("dev");
    if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        die("pivot_root");
    if (read(ready, &byte, 1) != 1)
        die("ready");
    configure_network();
    execve(busybox, argv, environment);
    die("exec");
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)status, (void)kind, (void)walk;
    return remove(path);
}

static void make_cgroups(void)
{
    char path[4096], parent[4096], value[256];
    static const char *const names[] = {"cpuset.cpus", "cpuset.mems"};
    for (int i = 0; i < hierarchies; i++) {
        snprintf(path, sizeof path, "%s/floor", cgroups[i]);
        if (mkdir(path, 0755))
            die(path);
        for (int n = 0; version == 1 && n < 2; n++) { /* a new v1 cpuset is empty and takes no process */
            snprintf(parent, sizeof parent, "%s/%s", cgroups[i], names[n]);
            int fd = open(parent, O_RDONLY | O_CLOEXEC);
            if (fd < 0)
                break;
            ssize_t length = read(fd, value, sizeof value - 1);
            close(fd);
            value[length > 0 ? length : 0] = 0;
            snprintf(path, sizeof path, "%s/floor/%s", cgroups[i], names[n]);
            put(path, value);
        }
    }
}

static void remove_cgroups(void)
{
    char path[4096];
    for (int i = 0; i < hierarchies; i++) {
        snprintf(path, sizeof path, "%s/floor", cgroups[i]);
        for (int tries = 0; rmdir(path); tries++) {
            if (errno != EBUSY || tries == 2000)
                die(path);
            usleep(100);
        }
    }
}

static pid_t start(int *pidfd)
{
    char path[4096];
    struct clone_args arguments = {
        .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_PIDFD,
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
    };
    int cgroup = -1;
    if (version == 2 && hierarchies) {
        snprintf(path, sizeof path, "%s/floor", cgroups[0]);
        cgroup = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup;
    }
    pid_t pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0)
        die("clone3");
    if (pid && cgroup >= 0)
        close(cgroup);
    return pid;
}

static void one_round(int number)
{
    static const char *const parts[] = {"", "/upper", "/work", "/merged"};
    char directory[2048], path[4096];
    int ready[2], pidfd, status = 0;
    int64_t begun = now(), ended;
    snprintf(directory, sizeof directory, "%s/%d", work, number);
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s%s", directory, parts[i]);
        if (mkdir(path, 0755))
            die(path);
    }
    make_cgroups();
    if (pipe2(ready, O_CLOEXEC))
        die("pipe");
    pid_t pid = start(&pidfd);
    if (pid == 0)
        sandbox(directory, ready);
    make_veth(number, pid);
    if (write(ready[1], "", 1) != 1 || waitpid(pid, &status, 0) != pid)
        die("wait");
    ended = now();
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        fprintf(stderr, "floor: the sandbox ended with status %#x\n", status);
        exit(1);
    }
    close(pidfd);
    close(ready[0]);
    close(ready[1]);
    remove_cgroups();
    nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    printf("%lld %lld\n", (long long)(ended - begun), (long long)(now() - begun));
    fflush(stdout);
}

int main(int count, char **arguments)
{
    char line[64];
    if (count < 6) {
        fprintf(stderr, "usage: floor BUSYBOX LOWER WORK BRIDGE v1|v2 CGROUP...\n");
        return 2;
    }
    busybox = arguments[1];
    lower = arguments[2];
    work = arguments[3];
    version = arguments[5][1] - '0';
    cgroups = arguments + 6;
    hierarchies = count - 6;
    netlink_fd = netlink();
    make_bridge(arguments[4]);
    for (int number = 0; fgets(line, sizeof line, stdin); number++)
        one_round(number);
    remove_bridge();
    return 0;
}
