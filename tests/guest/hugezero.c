// Reads where a folio of a PMD would fit, forks, writes there, moves it: the read alone gives the VMA its anon_vma, so the
// child is in the tree. For tests/test_reconstruct_family.py.
//
//     cc -O1 -static -o hugezero hugezero.c
//     ../../shared/guest/record 7.2 PATH/hugezero -i hugezero -o DIR --recorder trace-cmd --events allk --thp 2m
//
// where PATH is the folder in which the guest shows what -i gives it.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define BLOCK (2ul << 20)
static char *base = (char *)0x100000000000ul;
static void move(char *page, int node) {
  void *pages[1] = {page};
  int nodes[1] = {node}, status[1];
  syscall(SYS_move_pages, 0, 1L, pages, nodes, status, 4 /* MOVE_ALL */);
}
int main(void) {
  for (int round = 0; round < 4; round++) {
    mmap(base, 4 * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (round < 3) (void)*(volatile char *)(base + BLOCK + 4096 * round);  // in the last round no one reads
    pid_t child = fork();
    if (!child) { sleep(1); _exit(0); }
    usleep(20000);
    base[BLOCK + 8192] = 1;
    move(base + BLOCK, 1); usleep(10000);
    move(base + BLOCK, 0); usleep(10000);
    base[2 * BLOCK + 5] = 1;
    move(base + 2 * BLOCK, 1);
    waitpid(child, 0, 0);
  }
  char *truth = getenv("TRUTH");
  FILE *file = truth ? fopen(truth, "w") : 0;
  if (file) { fprintf(file, "{\"workload\": \"hugezero\"}\n"); fclose(file); }
  return 0;
}
