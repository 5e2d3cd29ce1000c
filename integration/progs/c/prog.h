// What the self-checking programs share.
//
// A program sets its object up, calls ready(), waits in wait_go() and checks
// itself. Files in /ctl are its only line to the test: ready, go and result.
#ifndef PROG_H
#define PROG_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// ready tells the test that the object is set up.
void ready(void);

// wait_go returns when the test says so. A sleep that is interrupted although
// no handler ran is a failure: allow_eintr is set by programs with handlers.
void wait_go(void);
extern bool allow_eintr;

// ctl is the folder of the three files; a program that changes its root sets it.
extern const char *ctl;

// fail records "FAIL what: got, want" and ends the process.
_Noreturn void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

// eq compares numbers, same compares strings, must wants no error from a call.
void eq(const char *what, long long got, long long want);
void same(const char *what, const char *got, const char *want);
long must(const char *what, long ret);

// slurp reads a whole /proc file into a static-sized buffer and ends it with 0.
size_t slurp(const char *path, char *buf, size_t size);

// status_lines copies the lines of a status file that begin with one of the
// names, which are separated by spaces.
void status_lines(const char *path, const char *names, char *out, size_t size);

// reap waits for one child, which must have ended with 0.
void reap(pid_t pid);

// A setting is an argument of the form name=value; settle reads all from args on.
// The list ends with a name of NULL.
struct setting { const char *name; long *number; const char **text; };
void settle(char **args, const struct setting *known);

// now is CLOCK_MONOTONIC in nanoseconds.
int64_t now(void);

// A meeting lets several processes say that they are set up. It leaves no
// descriptor behind.
struct meeting { int fd[2]; };
void meeting_make(struct meeting *m);
void meeting_arrive(struct meeting *m);
void meeting_wait(struct meeting *m, int n);

struct prog { const char *name; void (*run)(char **argv); };
extern const struct prog task_progs[], cred_progs[], cpu_progs[], restart_progs[],
	signal_progs[], mem_progs[], huge_progs[], share_progs[], misc_progs[], snapshot_progs[], load_progs[], lazy_progs[];

#endif
