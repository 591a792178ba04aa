/* Holds memory, and tells when it runs: `first READY BOARD MIB`.
 *
 * BOARD is a file of two words that is mapped: when the second is 1, the program writes the time (CLOCK_MONOTONIC, in
 * nanoseconds) into the first, and makes the second 2. Then it reads all of its memory, and makes it 3 when that was right. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	return *seed ^= *seed << 17;
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	size_t words = ((size_t)atol(argv[3]) << 20) / 8;
	uint64_t *memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open(argv[2], O_RDWR | O_CLOEXEC);
	volatile uint64_t *board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED || board == MAP_FAILED)
		return 1;
	close(fd);
	uint64_t seed = 88172645463325252ULL;
	for (size_t i = 0; i < words; i++)
		memory[i] = next(&seed);
	close(open(argv[1], O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
	while (board[1] != 1)
		__builtin_ia32_pause();
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	board[0] = (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
	board[1] = 2;
	seed = 88172645463325252ULL;
	uint64_t wrong = 0;
	for (size_t i = 0; i < words; i++)
		wrong |= memory[i] ^ next(&seed);
	board[1] = wrong ? 4 : 3;
	pause();
}
