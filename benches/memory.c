/*
 * What the figures are measured on and against.
 *
 *   memory hold READY MIB THREADS   fills MIB of anonymous memory with random bytes, starts threads, makes the file
 *                                   READY, sleeps
 *   memory speed MIB                prints nanoseconds: memcpy of MIB into memory touched before, memcpy into fresh
 *                                   memory, first touch of as much fresh memory (one byte in every page)
 *   memory run REPORT PROGRAM ...   runs a program; REPORT gets nanoseconds from exec to exit and the peak of its
 *                                   resident memory in KiB
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

static int hold(const char *ready, size_t size, int threads)
{
	randomise(fresh(size), size);
	for (int n = 1; n < threads; n++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, sleeper, NULL))
			return 1;
	}
	int fd = open(ready, O_CREAT | O_WRONLY, 0600);
	if (fd < 0)
		return 1;
	close(fd);
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

static int run(const char *report, char **command)
{
	uint64_t start = now();
	pid_t pid = vfork();
	if (pid == 0) {
		execv(command[0], command);
		_exit(127);
	}
	int status;
	struct rusage usage;
	if (pid < 0 || wait4(pid, &status, 0, &usage) != pid)
		return 1;
	uint64_t took = now() - start;
	FILE *file = fopen(report, "w");
	if (!file || fprintf(file, "%llu %ld\n", (unsigned long long)took, usage.ru_maxrss) < 0 || fclose(file))
		return 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
	size_t mib = 1 << 20;
	if (argc == 5 && !strcmp(argv[1], "hold"))
		return hold(argv[2], strtoul(argv[3], NULL, 10) * mib, atoi(argv[4]));
	if (argc == 3 && !strcmp(argv[1], "speed"))
		return speed(strtoul(argv[2], NULL, 10) * mib);
	if (argc >= 4 && !strcmp(argv[1], "run"))
		return run(argv[2], argv + 3);
	fprintf(stderr, "see the head of memory.c\n");
	return 2;
}
