// A family of up to ten processes that do random things to 48 pages, one at a time: what the kernel really does to
// VMAs, anon_vma trees and page tables, for tests/test_reconstruct_family.py.
//
//     cc -O1 -static -pthread -o family family.c
//     ../../shared/guest/record 7.2 'PATH/family SEED COMMANDS [KINDS [SCALE]]' -i family -o DIR --recorder trace-cmd --events allk
//
// where PATH is the folder in which the guest shows what -i gives it; with --thp mix for large folios.
//
// KINDS is a mask of the kinds below, by default all but those of threads and vfork(). The first process tells the
// others through pipes what to do and waits, but for exits and for pages that it moves itself; so the trace has no race
// but between CPUs' clocks. SCALE: pages in each of the 48, by default 1; 128 for folios of a PMD.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define BASE 0x100000000000ul
#define PAGES 48
#define MAX 10
enum { WRITE, READ, MAP, MAPFILE, MAPSHARED, UNMAP, PROT, DONTNEED, MREMAP, FORK, EXIT, MOVE, MOVEOTHER, ADVISE,
       TWRITE, TFORK, VFORK, NKINDS };
struct cmd { int kind, page, pages, arg; };
static int to[MAX][2], back[2], memfd, nodes = 2, scale = 1;
static sigjmp_buf env;
static pid_t *pids;
static void segv(int s) { siglongjmp(env, 1); }
static char *at(int page) { return (char *)BASE + 4096ul * scale * page; }
static long move(pid_t pid, int page, int n, int node) {
  void *p[64]; int nd[64], st[64];
  for (int i = 0; i < n; i++) { p[i] = at(page + i); nd[i] = node; }
  return syscall(SYS_move_pages, pid, (long)n, p, nd, st, 4 /* MOVE_ALL */);
}
static void worker(int me);
static void *thread(void *p) { // writes, or forks: the child goes on as a worker
  struct cmd c = *(struct cmd *)p;
  if (c.kind == TWRITE) { if (!sigsetjmp(env, 1)) *(volatile char *)at(c.page) = c.arg; return 0; }
  if (!fork()) { pids[c.arg] = getpid(); worker(c.arg); }
  return 0;
}
static void worker(int me) {
  struct cmd c; char ok = 1;
  while (read(to[me][0], &c, sizeof c) == sizeof c) {
    char *p = at(c.page); size_t len = 4096ul * scale * c.pages;
    switch (c.kind) {
    case WRITE: if (!sigsetjmp(env, 1)) *(volatile char *)(p + 4096 * (c.arg % scale)) = c.arg; break;
    case READ: if (!sigsetjmp(env, 1)) (void)*(volatile char *)p; break;
    case MAP: mmap(p, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); break;
    case MAPFILE: mmap(p, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, memfd, p - (char *)BASE); break;
    case MAPSHARED: mmap(p, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd, p - (char *)BASE); break;
    case UNMAP: munmap(p, len); break;
    case PROT: mprotect(p, len, c.arg & 1 ? PROT_READ : PROT_READ | PROT_WRITE); break;
    case DONTNEED: madvise(p, len, MADV_DONTNEED); break;
    case ADVISE: madvise(p, len, c.arg % 3 == 0 ? MADV_DONTFORK : c.arg % 3 == 1 ? MADV_DOFORK : MADV_RANDOM); break;
    case MREMAP: mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at(c.arg)); break;
    case TWRITE: case TFORK: { pthread_t t; pthread_create(&t, 0, thread, &c); pthread_join(t, 0); break; }
    case VFORK: { pid_t pid = vfork(); if (!pid) { if (!sigsetjmp(env, 1)) *(volatile char *)p = c.arg; _exit(0); } break; }
    case FORK: { pid_t pid = fork(); if (!pid) { me = c.arg; pids[me] = getpid(); } else continue; break; }
    case EXIT: ok = 1; _exit(0);
    case MOVE: move(0, c.page, c.pages, c.arg % nodes); break;
    }
    if (write(back[1], &ok, 1) != 1) _exit(1);
  }
  _exit(0);
}
int main(int argc, char **argv) {
  int seed = argc > 1 ? atoi(argv[1]) : 1, n = argc > 2 ? atoi(argv[2]) : 300;
  int mask = argc > 3 ? strtol(argv[3], 0, 0) : 0x3fff;
  if (argc > 4) scale = atoi(argv[4]);
  pids = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  memfd = memfd_create("rnd", 0); if (ftruncate(memfd, 4096ul * scale * PAGES)) return 1;
  for (int i = 0; i < MAX; i++) if (pipe(to[i])) return 1;
  if (pipe(back)) return 1;
  struct sigaction sa = {.sa_handler = segv, .sa_flags = SA_NODEFER}; sigaction(SIGSEGV, &sa, 0); sigaction(SIGBUS, &sa, 0);
  signal(SIGCHLD, SIG_IGN);
  if (!fork()) { pids[0] = getpid(); worker(0); }
  while (!pids[0]) usleep(100);
  int alive[MAX] = {1}, count = 1; srandom(seed); char ok;
  for (int i = 0; i < n; i++) {
    int who; do who = random() % MAX; while (!alive[who]);
    static const int weights[NKINDS] = {40, 10, 8, 4, 4, 4, 4, 4, 4, 10, 3, 25, 10, 3, 10, 4, 4};
    int sum = 0; for (int k = 0; k < NKINDS; k++) sum += mask >> k & 1 ? weights[k] : 0;
    int r = random() % sum, k = 0; for (;; k++) { if (!(mask >> k & 1)) continue; if (r < weights[k]) break; r -= weights[k]; }
    struct cmd c = {k, random() % PAGES, 1, random() % 64};
    c.pages = 1 + random() % (k == WRITE || k == READ || k >= TWRITE ? 1 : 12);
    if (i < 4) { c.kind = k = MAP; c.page = 12 * i; c.pages = 12; who = 0; }
    if (k == MOVE || k == MOVEOTHER) c.pages = 1 + random() % 24;
    if (c.page + c.pages > PAGES) c.pages = PAGES - c.page;
    if (k == MREMAP) { c.arg = random() % (PAGES - c.pages + 1); if (abs(c.arg - c.page) < c.pages) continue; }
    if (k == FORK || k == TFORK) { int j; for (j = 0; j < MAX && alive[j]; j++); if (j == MAX) continue; c.arg = j; pids[j] = 0; }
    if (k == EXIT && (count < 3 || who == 0)) continue;
    if (k == MOVEOTHER) { move(pids[who], c.page, c.pages, c.arg % nodes); continue; }
    if (write(to[who][1], &c, sizeof c) != sizeof c) return 1;
    if (k == EXIT) { alive[who] = 0; count--; pid_t p = pids[who]; while (!kill(p, 0)) usleep(200); usleep(2000); continue; }
    if (read(back[0], &ok, 1) != 1) return 1;
    if (k == FORK || k == TFORK) { alive[c.arg] = 1; count++; while (!pids[c.arg]) usleep(100); usleep(500); }
  }
  char *t = getenv("TRUTH"); if (t) { FILE *f = fopen(t, "w"); fprintf(f, "{\"workload\": \"rnd\", \"seed\": %d}\n", seed); fclose(f); }
  struct cmd c = {EXIT}; for (int i = 0; i < MAX; i++) if (alive[i]) if (write(to[i][1], &c, sizeof c) < 0) return 1;
  usleep(20000); return 0;
}
