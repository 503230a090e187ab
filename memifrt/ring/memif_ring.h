/* A memif ring in shared memory: its layout, its numbers, and the only ways in which the compiled rings read and write
 * an index or the flags. docs/protocol.md (Shared memory) has the layout; docs/memory-order.md says for each acquire,
 * release, fence and barrier what it orders and what breaks without it. */

#ifndef MEMIF_RING_H
#define MEMIF_RING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* --- threads of our own ------------------------------------------------------------------------------------------ */

#ifdef Py_GIL_DISABLED
/* Return a number that no other thread has, and that is not 0. */
static inline uint64_t memif_this_thread(void) { return (uint64_t) PyThread_get_thread_ident(); }

/* Add to a counter that several threads may change. */
static inline void memif_count(int *counter, int number) { __atomic_add_fetch(counter, number, __ATOMIC_RELAXED); }

/* Return whether an object is known to have one reference: it cannot be known here. */
#define memif_only_reference(object) 0
#else
/* The GIL keeps other threads away. */
#define memif_this_thread() 0
#define memif_count(counter, number) (*(counter) += (number))
#define memif_only_reference(object) (Py_REFCNT(object) == 1)
#endif

/* --- layout ---------------------------------------------------------------------------------------------------- */

/* The first word of a ring. The slave writes it, the master checks it. */
#define MEMIF_COOKIE 0x3E31F20
/* Bytes before the descriptors. */
#define MEMIF_HEADER_SIZE 128
/* Ring flag: the receiver asks for no interrupts. */
#define MEMIF_MASK_INT 1
/* Descriptor flag: the packet goes on in the next descriptor. */
#define MEMIF_NEXT 1

typedef struct {
    uint16_t flags, region;
    uint32_t length, offset, metadata;
} memif_descriptor;

/* Head and tail are free-running; the slot of an index is index & (size - 1). They lie in two cache lines, because each
 * side writes one and reads the other. */
typedef struct {
    uint32_t cookie;
    uint16_t flags, head;
    uint8_t reserved[56];
    uint16_t tail;
    uint8_t reserved2[62];
    memif_descriptor descriptors[];
} memif_ring;

_Static_assert(sizeof(memif_descriptor) == 16, "descriptor");
_Static_assert(offsetof(memif_ring, flags) == 4, "flags");
_Static_assert(offsetof(memif_ring, head) == 6, "head");
_Static_assert(offsetof(memif_ring, tail) == 64, "tail");
_Static_assert(offsetof(memif_ring, descriptors) == MEMIF_HEADER_SIZE, "descriptors");

/* --- order of memory operations (docs/memory-order.md) ----------------------------------------------------------- */

/* Load the index that the peer stores. No later load or store of ours happens before it. */
static inline uint16_t memif_load_acquire(const uint16_t *index) { return __atomic_load_n(index, __ATOMIC_ACQUIRE); }

/* Load an index to show it. Nothing may be read or written on the strength of this value. */
static inline uint16_t memif_load(const uint16_t *index) { return __atomic_load_n(index, __ATOMIC_RELAXED); }

/* Load the flags after a full fence. A sender that has stored its index either sees that its peer has cleared the mask,
 * or the peer sees the index when it looks at the ring again. */
static inline uint16_t memif_load_fence(const uint16_t *flags) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return __atomic_load_n(flags, __ATOMIC_RELAXED);
}

/* Store our index. No earlier load or store of ours happens after it. */
static inline void memif_store_release(uint16_t *index, uint16_t value) {
    __atomic_store_n(index, value, __ATOMIC_RELEASE);
}

/* Store the flags before a full fence, for a receiver that clears the mask and then looks at the ring again: see
 * memif_load_fence. */
static inline void memif_store_fence(uint16_t *flags, uint16_t value) {
    __atomic_store_n(flags, value, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Keep the compiler from loading again, from shared memory, what it has copied before this point. */
#define memif_barrier() __asm__ volatile("" ::: "memory")

/* --- copies ------------------------------------------------------------------------------------------------------ */

/* Start to load the cache line at p. */
#define memif_prefetch_read(p) __builtin_prefetch((p), 0)

#ifdef __x86_64__
#define memif_prefetch_line_write(p) __asm__ volatile("prefetchw %0" : : "m"(*(p)))
#else
#define memif_prefetch_line_write(p) __builtin_prefetch((p), 1)
#endif

/* Start to get the cache lines of a buffer that is to be written, for this core alone: a peer that has read or written
 * them has them, too, and a store would wait for them. The compiler's prefetch does not ask for this on every x86-64;
 * processors that do not know the instruction skip it. */
static inline void memif_prefetch_write(const void *p, size_t size) {
    const char *line = p;
    memif_prefetch_line_write(line);
    if (size > 64)
        for (const char *end = line + (size < 2048 ? size : 2048); (line += 64) < end;) memif_prefetch_line_write(line);
}

typedef struct { uint64_t word[2]; } memif_16;
typedef struct { uint64_t word[4]; } memif_32;

/* Copy descriptors. A few are copied without a call. */
static inline void memif_copy_descriptors(memif_descriptor *into, const memif_descriptor *from, int count) {
    if (count > 4) {
        memcpy(into, from, (size_t) count * sizeof *into);
    } else {
        for (int i = 0; i < count; i++) memcpy(&into[i], &from[i], sizeof *into);
    }
}

/* Copy like memmove: a peer can make the memory that it sends overlap the memory that it posts. Small packets are
 * copied without a call: both parts, which overlap in the middle, are loaded before either is stored. */
static inline void memif_move(void *into, const void *from, size_t size) {
    if (size > 64 || size < 16) {
        memmove(into, from, size);
    } else if (size < 32) {
        memif_16 head, tail;
        memcpy(&head, from, 16);
        memcpy(&tail, (const char *) from + size - 16, 16);
        memcpy(into, &head, 16);
        memcpy((char *) into + size - 16, &tail, 16);
    } else {
        memif_32 head, tail;
        memcpy(&head, from, 32);
        memcpy(&tail, (const char *) from + size - 32, 32);
        memcpy(into, &head, 32);
        memcpy((char *) into + size - 32, &tail, 32);
    }
}

/* Return how many of these copied descriptors have NEXT, and set *octets to the sum of their lengths. Flags and length
 * of a descriptor come with one load of 8 bytes. */
static inline uint64_t memif_sum(const memif_descriptor *entries, int count, uint64_t *octets) {
    uint64_t chained = 0, sum = 0, word;
    for (int i = 0; i < count; i++) {
        memcpy(&word, &entries[i], 8);
        chained += word & MEMIF_NEXT;
        sum += word >> 32;
    }
    *octets = sum;
    return chained;
}

#endif
