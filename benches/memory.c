/*
 * What the figures are measured on and against.
 *
 *   memory hold READY MIB THREADS   fills MIB of anonymous memory with random bytes, starts threads, makes the file
 *                                   READY, sleeps
 *   memory mixed READY MIB          the same, but with a heap as programs have it: text, structures with pointers to each
 *                                   other and small numbers, zeros
 *   memory many READY PROCESSES THREADS   as many processes, itself among them, of as many threads, with some memory
 *   memory speed MIB                prints nanoseconds: memcpy of MIB into memory touched before, memcpy into fresh
 *                                   memory, first touch of as much fresh memory (one byte in every page)
 *   memory run REPORT PROGRAM ...   runs a program; REPORT gets nanoseconds from exec to exit, the peak of its
 *                                   resident memory in KiB, and that of what of it belongs to no file, seen every
 *                                   millisecond
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Pages of 4 KiB whatever this machine's habit with huge ones: what a program has when it asks for nothing. */
static unsigned char *fresh(size_t size)
{
	unsigned char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED || madvise(at, size, MADV_NOHUGEPAGE)) {
		perror("mmap");
		exit(1);
	}
	return at;
}

static void randomise(unsigned char *at, size_t size)
{
	uint64_t x = now() | 1;
	for (uint64_t *word = (uint64_t *)at, *end = (uint64_t *)(at + size); word < end; word++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		*word = x;
	}
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void ready_is(const char *ready)
{
	int fd = open(ready, O_CREAT | O_WRONLY, 0600);
	if (fd < 0)
		exit(1);
	close(fd);
}

static void threads_are(int threads)
{
	for (int n = 1; n < threads; n++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, sleeper, NULL))
			exit(1);
	}
}

static int hold(const char *ready, size_t size, int threads)
{
	randomise(fresh(size), size);
	threads_are(threads);
	ready_is(ready);
	sleeper(NULL);
	return 0;
}

static uint64_t seed = 88172645463325252ull;

static uint64_t next(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

/* Lines of a log: words of a small language, numbers that grow, numbers that do not. */
static void text(char *at, char *end)
{
	static const char *words[] = { "the ", "request ", "of ", "user ", "was ", "answered ", "in ", "ms ", "error ", "GET ", "/index.html ",
		"connection ", "closed ", "by ", "peer ", "timeout ", "session ", "cache ", "miss ", "hit ", "key ", "value ", "retry ", "ok " };
	static unsigned line;
	while (at < end) {
		char put[160];
		int n = snprintf(put, sizeof put, "2026-01-%02u %08u ", line % 28 + 1, line);
		for (int left = next() % 12 + 2; left; left--)
			n += snprintf(put + n, sizeof put - n, "%s", words[next() % 24]);
		n += snprintf(put + n, sizeof put - n, "%llx\n", (unsigned long long)(next() & 0xffffffff));
		size_t fits = n < end - at ? n : end - at;
		memcpy(at, put, fits);
		at += fits;
		line++;
	}
}

/* Nodes of 64 bytes: two pointers into the heap, a size, a count, flags, a hash, the rest not used. */
static void nodes(char *heap, size_t size, char *at, char *end)
{
	for (; at < end; at += 64) {
		uint64_t *word = (uint64_t *)at;
		word[0] = (uint64_t)heap + next() % size / 64 * 64;
		word[1] = (uint64_t)at + 64 * (next() % 8);
		word[2] = next() % 4096;
		word[3] = next() % 16;
		word[4] = next() & 0xffffffff;
		word[5] = 0x100;
	}
}

/* Each stretch of 64 KiB: text, or nodes, or zeros, as 5 to 5 to 2. */
static int mixed(const char *ready, size_t size)
{
	char *heap = (char *)fresh(size);
	for (size_t at = 0; at < size; at += 1 << 16) {
		size_t end = at + (1 << 16) < size ? at + (1 << 16) : size;
		int what = next() % 12;
		if (what < 5)
			text(heap + at, heap + end);
		else if (what < 10)
			nodes(heap, size, heap + at, heap + end);
		else
			memset(heap + at, 0, end - at);
	}
	ready_is(ready);
	sleeper(NULL);
	return 0;
}

static int many(const char *ready, int processes, int threads)
{
	int ends[2];
	if (pipe(ends))
		return 1;
	for (int n = 1; n < processes; n++) {
		pid_t pid = fork();
		if (pid < 0)
			return 1;
		if (pid > 0)
			continue;
		size_t own = 256 << 10;
		randomise(fresh(own), own);
		threads_are(threads);
		if (write(ends[1], "", 1) != 1)
			return 1;
		close(ends[0]);
		close(ends[1]);
		sleeper(NULL);
	}
	threads_are(threads);
	for (int n = 1; n < processes; n++) {
		char byte;
		if (read(ends[0], &byte, 1) != 1)
			return 1;
	}
	close(ends[0]);
	close(ends[1]);
	ready_is(ready);
	sleeper(NULL);
	return 0;
}

static int speed(size_t size)
{
	unsigned char *from = fresh(size), *to = fresh(size);
	randomise(from, size);
	memset(to, 1, size);
	uint64_t start = now();
	memcpy(to, from, size);
	uint64_t touched = now() - start;
	munmap(to, size);

	to = fresh(size);
	start = now();
	memcpy(to, from, size);
	uint64_t untouched = now() - start;
	int same = memcmp(to, from, size) == 0;
	munmap(to, size);
	munmap(from, size);

	to = fresh(size);
	start = now();
	for (size_t at = 0; at < size; at += 4096)
		((volatile unsigned char *)to)[at] = 1;
	uint64_t touch = now() - start;
	printf("%llu %llu %llu\n", (unsigned long long)touched, (unsigned long long)untouched, (unsigned long long)touch);
	return !same;
}

static volatile pid_t watched;
static volatile long own_peak;

static void *watch(void *unused)
{
	char path[64], said[128];
	while (watched >= 0) {
		struct timespec pause = { 0, 1000000 };
		nanosleep(&pause, NULL);
		if (watched <= 0)
			continue;
		snprintf(path, sizeof path, "/proc/%d/statm", (int)watched);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, said, sizeof said - 1);
		if (fd >= 0)
			close(fd);
		long resident, shared;
		said[n > 0 ? n : 0] = 0;
		if (sscanf(said, "%*d %ld %ld", &resident, &shared) == 2 && (resident - shared) * 4 > own_peak)
			own_peak = (resident - shared) * 4;
	}
	return unused;
}

static int run(const char *report, char **command)
{
	pthread_t watcher;
	if (pthread_create(&watcher, NULL, watch, NULL))
		return 1;
	uint64_t start = now();
	pid_t pid = vfork();
	if (pid == 0) {
		execv(command[0], command);
		_exit(127);
	}
	watched = pid;
	int status;
	struct rusage usage;
	if (pid < 0 || wait4(pid, &status, 0, &usage) != pid)
		return 1;
	uint64_t took = now() - start;
	watched = -1;
	pthread_join(watcher, NULL);
	FILE *file = fopen(report, "w");
	if (!file || fprintf(file, "%llu %ld %ld\n", (unsigned long long)took, usage.ru_maxrss, own_peak) < 0 || fclose(file))
		return 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	size_t mib = 1 << 20;
	if (argc == 5 && !strcmp(argv[1], "hold"))
		return hold(argv[2], strtoul(argv[3], NULL, 10) * mib, atoi(argv[4]));
	if (argc == 4 && !strcmp(argv[1], "mixed"))
		return mixed(argv[2], strtoul(argv[3], NULL, 10) * mib);
	if (argc == 5 && !strcmp(argv[1], "many"))
		return many(argv[2], atoi(argv[3]), atoi(argv[4]));
	if (argc == 3 && !strcmp(argv[1], "speed"))
		return speed(strtoul(argv[2], NULL, 10) * mib);
	if (argc >= 4 && !strcmp(argv[1], "run"))
		return run(argv[2], argv + 3);
	fprintf(stderr, "see the head of memory.c\n");
	return 2;
}
