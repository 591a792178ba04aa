/*
 * Both sides of the connections that the figures are about.
 *
 *   connections serve READY PORT           answers with what it hears, on any number of connections; makes the file READY
 *   connections hold READY PORT COUNT      opens COUNT connections, says nothing, makes READY, sleeps
 *   connections ping READY PORT REPORT     asks again and again on one connection; REPORT gets, when it is told to end
 *                                          (SIGTERM), nanoseconds of the longest answer, and how many there were
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void ready(const char *path)
{
	int fd = open(path, O_CREAT | O_WRONLY, 0600);
	if (fd < 0)
		fail(path);
	close(fd);
}

static struct sockaddr_in at(const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	return a;
}

static int dial(const char *port)
{
	struct sockaddr_in a = at(port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a))
		fail("connect");
	int one = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static void serve(const char *done, const char *port)
{
	struct sockaddr_in a = at(port);
	int one = 1, door = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
	setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(door, (struct sockaddr *)&a, sizeof a) || listen(door, 4096))
		fail("listen");
	struct epoll_event event = { .events = EPOLLIN, .data.fd = door };
	epoll_ctl(poll, EPOLL_CTL_ADD, door, &event);
	ready(done);
	for (;;) {
		struct epoll_event events[256];
		int n = epoll_wait(poll, events, 256, -1);
		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++) {
			char bytes[4096];
			int fd = events[i].data.fd;
			if (fd == door) {
				int new = accept(door, NULL, NULL);
				if (new < 0)
					fail("accept");
				setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				struct epoll_event e = { .events = EPOLLIN, .data.fd = new };
				if (epoll_ctl(poll, EPOLL_CTL_ADD, new, &e))
					fail("epoll_ctl");
				continue;
			}
			ssize_t got = read(fd, bytes, sizeof bytes);
			if (got <= 0 || write(fd, bytes, got) != got)
				close(fd);
		}
	}
}

static volatile sig_atomic_t over;

static void end(int signal)
{
	(void)signal;
	over = 1;
}

static void ping(const char *done, const char *port, const char *report)
{
	int fd = dial(port);
	uint64_t longest = 0, count = 0;
	signal(SIGTERM, end);
	ready(done);
	while (!over) {
		uint64_t asked = now(), answer = 0;
		if (write(fd, &asked, sizeof asked) != sizeof asked || recv(fd, &answer, sizeof answer, MSG_WAITALL) != sizeof answer)
			fail("ping");
		if (answer != asked) {
			fprintf(stderr, "ping: another answer\n");
			exit(1);
		}
		uint64_t took = now() - asked;
		longest = took > longest ? took : longest;
		count++;
		usleep(100);
	}
	FILE *file = fopen(report, "w");
	if (!file)
		fail(report);
	fprintf(file, "%llu %llu\n", (unsigned long long)longest, (unsigned long long)count);
	fclose(file);
}

int main(int count, char **word)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	if (count == 4 && !strcmp(word[1], "serve")) {
		serve(word[2], word[3]);
	} else if (count == 5 && !strcmp(word[1], "hold")) {
		for (int n = atoi(word[4]); n > 0; n--)
			dial(word[3]);
		ready(word[2]);
		for (;;)
			pause();
	} else if (count == 5 && !strcmp(word[1], "ping")) {
		ping(word[2], word[3], word[4]);
	} else {
		fprintf(stderr, "connections serve|hold|ping ...\n");
		return 2;
	}
}
