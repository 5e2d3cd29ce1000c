// What the parts of the snapshot program share.
#ifndef SNAPSHOT_H
#define SNAPSHOT_H

#include "prog.h"
#include <pthread.h>

#define PAGE 4096UL
#define WORDS (PAGE / sizeof(uint64_t))
#define LOG (1UL << 16)

// A tag names the contents of a page: the number of the write that made them, or
// the page of a file that they were read from. Zeros are a page that was given back.
#define TAG_FILE (1UL << 63)
#define TAG_ZERO 0UL

// A note is what the last write to a page was; a line, where a write went.
struct note { uint64_t seq, tag; };
struct line { uint64_t seq, page; };

// The book must agree with the pages at any time that nobody holds the lock. It
// lies apart from them, and is shared if several processes write.
struct book {
	uint64_t seq; // of the last write
	uint64_t stop;
	pthread_mutex_t lock;
	struct line log[LOG]; // the last writes
	struct note note[];
};

// How a page gets its contents.
enum way { STORE, ALIAS, PWRITE, READ, DIRECT, VMWRITE, MIX };

struct region {
	struct book *book;
	unsigned char *mem, *alias;
	size_t pages, from, to; // from..to are this process's
	int fd;                 // of a memfd, or -1
	int direct;             // of the file for DIRECT
	enum way way;
	bool shared, drop;
	long pace; // writes a second, of each thread, 1000 or more; 0 is as fast as can be
	long hot;  // per cent of the pages that get nearly all of the writes
};

// A hand is what one thread writes with.
struct hand {
	unsigned char *bounce;
	int pipe[2];
	uint64_t rnd;
};

void hand_make(struct hand *h, uint64_t seed);
void hand_end(struct hand *h);
uint64_t dice(struct hand *h);
bool stopped(const struct region *r);

// write_once writes one page, or more, after looking whether it still is what the
// book says, so that no damage is ever covered up.
void write_once(struct region *r, struct hand *h);

// count gives the next write, to page p, its number.
uint64_t count(struct book *b, size_t p);

// check_own checks every page of this process; check_log that no write is missing.
void check_own(const struct region *r);
void check_log(const struct region *r);

// stamp fills a page for a tag; stamped checks it.
void stamp(unsigned char *page, uint64_t tag);
void stamped(const char *what, const unsigned char *page, uint64_t tag);
void zeroed(const char *what, const unsigned char *page);

// churn finds what goes on beside the writers: a function for a thread, whose
// argument is the region.
void *(*churn(const char *name))(void *);

#endif
