/* Memory of every kind, changed step by step. The first process is a, its child b. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define must(what) do { if (!(what)) { perror(#what); exit(9); } } while (0)

static char *private, *shared, *over, *cache, *region, *extra, *guarded;
static size_t pages;
static int cache_fd;
static const char *prefix;

enum { SHARED = 128, OVER = 64, CACHE = 64, REGION = 64, GUARDED = 96 };
/* Which pages may not be touched, where the kernel has that (Linux 6.13). */
static char is_guard[GUARDED];
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103

static char *map(void *at, size_t n, int flags, int fd) {
    char *p = mmap(at, n * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    must(p != MAP_FAILED);
    return p;
}

/* A page that is like no other, unless it is made again with the same numbers. */
static void fill(char *page, uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9e3779b97f4a7c15u ^ (b + 1) * 0xbf58476d1ce4e5b9u;
    for (size_t i = 0; i < PAGE / 8; i++) {
        x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
        ((uint64_t *)page)[i] = i < 64 ? x : x & 0xff;
    }
}

static uint64_t add(uint64_t h, const char *at, size_t n) {
    const uint64_t *words = (const uint64_t *)at;
    for (size_t i = 0; i < n * PAGE / 8; i++) h = (h ^ words[i]) * 0x100000001b3u;
    return h;
}

/* Also which pages cannot be read. */
static uint64_t look(uint64_t h, char *at, size_t n) {
    static char page[PAGE];
    for (size_t i = 0; i < n; i++) {
        struct iovec to = { page, PAGE }, from = { at + i * PAGE, PAGE };
        if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) == PAGE) h = add(h, page, 1);
        else h = (h ^ (i + 1)) * 0x100000001b3u;
    }
    return h;
}

/* Pages become guards, and guards become pages, some of which are written. */
static void guard(long step) {
    for (size_t i = 0; i < GUARDED; i++) {
        int want = (i * 7 + step * 5) % 11 < 3;
        if (want && !is_guard[i]) is_guard[i] = madvise(guarded + i * PAGE, PAGE, MADV_GUARD_INSTALL) == 0;
        if (want || !is_guard[i]) continue;
        must(madvise(guarded + i * PAGE, PAGE, MADV_GUARD_REMOVE) == 0);
        is_guard[i] = 0;
        if (i % 2) fill(guarded + i * PAGE, step, i);
    }
}

static void say(const char *who, long step) {
    uint64_t h = 0xcbf29ce484222325u;
    h = add(h, private, pages), h = add(h, shared, SHARED), h = add(h, over, OVER);
    h = add(h, cache, CACHE), h = add(h, region, REGION), h = look(h, guarded, GUARDED);
    if (extra) h = add(h, extra, 4);
    char part[512], name[512];
    snprintf(part, sizeof part, "%s.%s.part", prefix, who);
    snprintf(name, sizeof name, "%s.%s.done.%ld", prefix, who, step);
    FILE *f = fopen(part, "w");
    must(f);
    fprintf(f, "%016lx\n", h);
    must(fclose(f) == 0 && rename(part, name) == 0);
}

static void change(int first, long step) {
    size_t start = (step * 131) % (pages - 40);
    for (size_t i = 0; i < 24; i++) fill(private + (start + i + i / 8) * PAGE, step, i + 100 * first);
    fill(shared + ((step * 7 + 40 * first) % SHARED) * PAGE, step, 7);
    fill(over + (step * 3 % OVER) * PAGE, step, 8);
    guard(step);
    switch (step % 4) {
    case 1: /* given back: zero, or what the file has */
        must(madvise(private + 10 * PAGE, 20 * PAGE, MADV_DONTNEED) == 0);
        must(madvise(over + 10 * PAGE, 20 * PAGE, MADV_DONTNEED) == 0);
        fill(private + 15 * PAGE, step, 9);
        break;
    case 2: /* another mapping at the same place, half of it written */
        must(munmap(region, REGION * PAGE) == 0);
        must(map(region, REGION, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1) == region);
        for (size_t i = 0; i < REGION; i += 2) fill(region + i * PAGE, first, i);
        if (first) must(fallocate(cache_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8 * PAGE, 8 * PAGE) == 0);
        break;
    case 3: /* zeros that are written, and one more memory object, in front of the others */
        memset(private + 40 * PAGE, 0, 5 * PAGE);
        memset(over + 40 * PAGE, 0, 3 * PAGE);
        if (!first) memset(shared + 3 * PAGE, 0, 2 * PAGE);
        if (first && !extra) {
            extra = map(NULL, 4, MAP_SHARED | MAP_ANONYMOUS, -1);
            fill(extra, 1, 2);
        }
        break;
    default: /* moved: the same content elsewhere */
        memcpy(region, private, 16 * PAGE);
        if (first) fill(cache + (step % CACHE) * PAGE, step, 10);
    }
}

static void serve(int first) {
    const char *who = first ? "a" : "b";
    char name[512];
    for (long next = 1;;) {
        snprintf(name, sizeof name, "%s.%s.do.%ld", prefix, who, next);
        if (access(name, F_OK) == 0) {
            change(first, next);
            say(who, next++);
        }
        snprintf(name, sizeof name, "%s.%s.do.100000", prefix, who);
        if (access(name, F_OK) == 0) {
            say(who, 100000);
            while (access(name, F_OK) == 0) nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
        }
        nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
    }
}

int main(int argc, char **argv) {
    must(argc == 3);
    prefix = argv[1];
    pages = strtoul(argv[2], NULL, 10);
    char name[512], page[PAGE];
    snprintf(name, sizeof name, "%s.data", prefix);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    must(fd >= 0);
    for (int i = 0; i < OVER; i++) {
        fill(page, 77, i);
        must(write(fd, page, PAGE) == PAGE);
    }
    cache_fd = memfd_create("cache", 0);
    must(cache_fd >= 0 && ftruncate(cache_fd, CACHE * PAGE) == 0);
    over = map(NULL, OVER, MAP_PRIVATE, fd);
    cache = map(NULL, CACHE, MAP_SHARED, cache_fd);
    shared = map(NULL, SHARED, MAP_SHARED | MAP_ANONYMOUS, -1);
    private = map(NULL, pages, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    region = map(NULL, REGION, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    guarded = map(NULL, GUARDED, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    close(fd);
    for (size_t i = 0; i < GUARDED; i++) fill(guarded + i * PAGE, 4000, i);
    for (size_t i = 0; i < pages; i++) fill(private + i * PAGE, 1000, i);
    for (size_t i = 0; i < SHARED; i++) fill(shared + i * PAGE, 2000, i);
    for (size_t i = 0; i < CACHE; i++) fill(cache + i * PAGE, 3000, i);
    strcpy(private + (pages - 1) * PAGE, "written once, in the beginning");
    must((private[(pages - 1) * PAGE] & 0x7f) == 'w');
    if (fork() == 0) serve(0);
    snprintf(name, sizeof name, "%s.ready.part", prefix);
    FILE *f = fopen(name, "w");
    must(f && fputs("ready\n", f) >= 0 && fclose(f) == 0);
    snprintf(page, sizeof page, "%s.ready", prefix);
    must(rename(name, page) == 0);
    serve(1);
}
