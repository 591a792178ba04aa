/*
 * A program that writes into its memory all the time.
 *
 *   writer READY BOARD MIB PAGES   fills MIB with random bytes and writes into PAGES random pages a second, as evenly as
 *                                  it can; 0: as fast as it can. BOARD, a file of one page, has the number of pages so far.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t x = 88172645463325252ull;

static uint64_t next(void)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	size_t size = strtoul(argv[3], NULL, 10) << 20, pages = size / 4096;
	double rate = atof(argv[4]);
	int fd = open(argv[2], O_RDWR);
	volatile uint64_t *board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	unsigned char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (board == MAP_FAILED || memory == MAP_FAILED)
		return 1;
	close(fd);
	for (uint64_t *word = (uint64_t *)memory; word < (uint64_t *)(memory + size); word++)
		*word = next();
	close(open(argv[1], O_CREAT | O_WRONLY, 0600));
	double due = now();
	for (;;) {
		for (int n = 0; n < 20; n++) {
			memory[next() % pages * 4096 + next() % 4096]++;
			(*board)++;
		}
		if (rate > 0) {
			due += 20 / rate;
			struct timespec t = { (time_t)due, (long)((due - (time_t)due) * 1e9) };
			if (due > now())
				clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
			else if (now() - due > 0.1)
				due = now(); /* what was missed is not made up for */
		}
	}
}
