/* What bounds a copy from ring to ring: where the bytes are, and how they are copied. For x86-64.
 *
 *     cc -O2 -pthread benchmarks/copies.c -o build/copies && build/copies
 *
 * One thread copies packets from the buffers of one ring into those of another, in turn, as a master does that forwards.
 * The other thread is its peer: it reads the first cache lines of what arrives, and writes as many of what it sends next.
 * The ways to copy take turns, less than a millisecond each, so that other load hits all of them. Prints medians in
 * nanoseconds a packet. */

#define _GNU_SOURCE
#include <emmintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { LINE = 64, BURST = 64, BURSTS = 16, AHEAD = 6, NEAR = 3, MOST = 20000 };
/* As memifrt lays out buffers of 2048 bytes: an odd number of cache lines apart. */
enum { STRIDE = 33 * LINE };

static char *from, *into;
static uint32_t slots;
static int touched; /* lines that the peer reads and writes */
static volatile int over;
static uint32_t head __attribute__((aligned(LINE))), tail __attribute__((aligned(LINE)));

static char *at(char *buffers, uint32_t index) { return buffers + (size_t) (index & (slots - 1)) * STRIDE; }

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void *peer(void *unused) {
    uint64_t sum = 0;
    pin(1);
    while (!over) {
        uint32_t stop = __atomic_load_n(&head, __ATOMIC_ACQUIRE);
        for (uint32_t index = tail; index != stop; index++) {
            for (int line = 0; line < touched; line++) sum += *(volatile uint64_t *) (at(into, index) + LINE * line);
            for (int line = 0; line < touched; line++) *(volatile uint64_t *) (at(from, index) + LINE * line) = sum;
        }
        __atomic_store_n(&tail, stop, __ATOMIC_RELEASE);
    }
    return unused;
}

/* --- the ways to copy ------------------------------------------------------------------------------------------ */

static void prefetch_read(const char *p) { __asm__ volatile("prefetcht0 %0" : : "m"(*p)); }
static void prefetch_write(const char *p) { __asm__ volatile("prefetchw %0" : : "m"(*p)); }

static void plain(uint32_t index, size_t size) {
    prefetch_read(at(from, index + AHEAD));
    memmove(at(into, index), at(from, index), size);
}

static void fetched(uint32_t index, size_t size) {
    char *next = at(into, index + NEAR);
    for (size_t done = 0; done < size; done += LINE) prefetch_write(next + done);
    plain(index, size);
}

static void read_ahead(uint32_t index, size_t size) {
    const char *next = at(from, index + 2);
    for (size_t done = 0; done < size; done += LINE) prefetch_read(next + done);
    memmove(at(into, index), at(from, index), size);
}

static void rep_movsb(uint32_t index, size_t size) {
    char *to = at(into, index);
    const char *source = at(from, index);
    prefetch_read(at(from, index + AHEAD));
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(source), "+c"(size) : : "memory");
}

static void non_temporal(uint32_t index, size_t size) {
    char *to = at(into, index);
    const char *source = at(from, index);
    size_t whole = size / LINE * LINE; /* a line with both kinds of stores is very slow */
    prefetch_read(at(from, index + AHEAD));
    for (size_t done = 0; done < whole; done += 16)
        _mm_stream_si128((__m128i *) (to + done), _mm_loadu_si128((const __m128i *) (source + done)));
    memcpy(to + whole, source + whole, size - whole);
}

static const struct {
    const char *name;
    void (*copy)(uint32_t, size_t);
} ways[] = {
    {"memmove", plain},
    {"memmove, room fetched", fetched},
    {"memmove, packet fetched", read_ahead},
    {"rep movsb", rep_movsb},
    {"non-temporal", non_temporal},
};
enum { WAYS = sizeof ways / sizeof *ways };

/* --- measuring ------------------------------------------------------------------------------------------------- */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

static double once(int way, size_t size) {
    double start = now();
    for (int burst = 0; burst < BURSTS; burst++) {
        uint32_t index = head;
        while (slots - (index - __atomic_load_n(&tail, __ATOMIC_ACQUIRE)) < BURST) {}
        for (int i = 0; i < BURST; i++) ways[way].copy(index + i, size);
        _mm_sfence(); /* for non-temporal stores */
        __atomic_store_n(&head, index + BURST, __ATOMIC_RELEASE);
    }
    return (now() - start) / (BURSTS * BURST);
}

static void measure(size_t size, uint32_t ring_size, int lines) {
    static double taken[WAYS][MOST];
    size_t bytes = (size_t) ring_size * STRIDE;
    double end;
    int count = 0;
    pthread_t thread;
    slots = ring_size;
    touched = lines;
    head = tail = over = 0;
    from = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (from == MAP_FAILED) exit(1);
    into = from + bytes;
    memset(from, 1, 2 * bytes);
    pthread_create(&thread, NULL, peer, NULL);
    for (end = now() + 1e9; now() < end && count < MOST; count++)
        for (int way = 0; way < WAYS; way++) {
            for (int passes = 0; passes < 3; passes++) once(way, size); /* the way before has left other caches */
            taken[way][count] = once(way, size);
        }
    over = 1;
    pthread_join(thread, NULL);
    munmap(from, 2 * bytes);
    printf("%5zu %5u %7d", size, ring_size, lines);
    for (int way = 0; way < WAYS; way++) {
        qsort(taken[way], count, sizeof **taken, compare);
        printf(" %23.0f", taken[way][count / 2]);
    }
    printf("\n");
}

int main(void) {
    static const int sizes[] = {64, 512, 1500};
    static const uint32_t rings[] = {1024, 512, 256};
    pin(0);
    printf("bytes slots touched");
    for (int way = 0; way < WAYS; way++) printf(" %23s", ways[way].name);
    printf("\n");
    for (int size = 0; size < 3; size++)
        for (int ring = 0; ring < 3; ring++) {
            int all = (sizes[size] + LINE - 1) / LINE;
            measure(sizes[size], rings[ring], 0);
            measure(sizes[size], rings[ring], 1);
            if (all > 1) measure(sizes[size], rings[ring], all);
        }
    return 0;
}
