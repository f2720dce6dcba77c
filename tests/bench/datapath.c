/* Traffic for the benchmark: a server, and clients that say how much passed in a time.
 *
 *   datapath serve PORT
 *   datapath stream HOST PORT MILLISECONDS                 prints bytes per second
 *   datapath request HOST PORT MILLISECONDS CONNECTIONS    prints requests per second, on connections that stay
 *   datapath connect HOST PORT MILLISECONDS                prints connections per second, one request each
 *
 * A connection's first byte says what it is for: 's' is thrown away like all that follows, 'r' begins a request of REQUEST bytes, which is
 * answered by ANSWER bytes. One thread on either side, the clients on the first processor and the server on the last one: left to the
 * scheduler, whether both share one decides more than what is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST = 64, ANSWER = 512, BLOCK = 1 << 18, EVENTS = 256, FILES = 4096 };

static char block[BLOCK];
static int waiting[FILES]; /* bytes of an unfinished request, -1 for a stream, by file descriptor */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void at_once(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void stay_on(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

static void watch(int set, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

static int answered(int fd) {
    ssize_t got = recv(fd, block, BLOCK, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    if (waiting[fd] == 0 && block[0] == 's')
        waiting[fd] = -1;
    if (waiting[fd] < 0)
        return 1;
    for (waiting[fd] += got; waiting[fd] >= REQUEST; waiting[fd] -= REQUEST)
        if (send(fd, block, ANSWER, MSG_NOSIGNAL) != ANSWER)
            return 0;
    return 1;
}

static int serve(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event events[EVENTS];
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), set = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        die("listen");
    watch(set, listener);
    for (;;) {
        int ready = epoll_wait(set, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0 || client >= FILES)
                    die("accept");
                at_once(client);
                waiting[client] = 0;
                watch(set, client);
            } else if (!answered(fd)) {
                close(fd);
            }
        }
    }
}

static int dial(char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, arguments[0], &address.sin_addr) != 1 || connect(fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    at_once(fd);
    return fd;
}

static void ask(int fd) {
    static char request[REQUEST] = {'r'};
    if (send(fd, request, REQUEST, 0) != REQUEST)
        die("send");
}

static int whole_answer(int fd, int *missing) {
    ssize_t got = recv(fd, block, *missing, 0);
    if (got <= 0)
        die("recv");
    *missing -= got;
    return *missing == 0;
}

static double stream(char **arguments, long long length) {
    int fd = dial(arguments);
    long long begun = now(), sent = 0;
    memset(block, 's', BLOCK);
    while (now() - begun < length) {
        ssize_t put = send(fd, block, BLOCK, 0);
        if (put < 0)
            die("send");
        sent += put;
    }
    shutdown(fd, SHUT_WR);
    if (recv(fd, block, 1, 0)) /* the end: everything arrived */
        die("recv");
    return sent * 1e9 / (now() - begun);
}

static double requests(char **arguments, long long length, int connections) {
    struct epoll_event events[EVENTS];
    int set = epoll_create1(0), *missing = calloc(FILES, sizeof *missing);
    long long done = 0, begun;
    for (int i = 0; i < connections; i++) {
        int fd = dial(arguments);
        missing[fd] = ANSWER;
        watch(set, fd);
        ask(fd);
    }
    begun = now();
    while (now() - begun < length) {
        int ready = epoll_wait(set, events, EVENTS, 1000);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (whole_answer(fd, &missing[fd])) {
                done++;
                missing[fd] = ANSWER;
                ask(fd);
            }
        }
    }
    return done * 1e9 / (now() - begun);
}

static double connections(char **arguments, long long length) {
    struct linger reset = {.l_onoff = 1}; /* else the ports wait in TIME_WAIT and run out */
    long long begun = now(), done = 0;
    while (now() - begun < length) {
        int fd = dial(arguments), missing = ANSWER;
        ask(fd);
        while (!whole_answer(fd, &missing))
            ;
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd);
        done++;
    }
    return done * 1e9 / (now() - begun);
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "serve")) {
        stay_on(sysconf(_SC_NPROCESSORS_ONLN) - 1);
        return serve(atoi(arguments[2]));
    }
    if (count < 5)
        return 2;
    stay_on(0);
    long long length = atoi(arguments[4]) * 1000000LL;
    if (!strcmp(arguments[1], "stream"))
        printf("%f\n", stream(arguments + 2, length));
    else if (!strcmp(arguments[1], "request") && count == 6)
        printf("%f\n", requests(arguments + 2, length, atoi(arguments[5])));
    else if (!strcmp(arguments[1], "connect"))
        printf("%f\n", connections(arguments + 2, length));
    else
        return 2;
    return 0;
}
