/* ranks.h - what backend_cpu.c's ranks say to each other: the collectives of backend.h over MPI.
 *
 * The entries are those of Backend, under the same names. Without MPI they exist and do nothing:
 * there is one rank alone, every group is NULL.
 */
#pragma once

#include "backend.h"

/* Meets the other ranks. Once, whatever it is called for afterwards. */
void ranks_start(const Device *d);
/* This rank's share of its machine's cores; the ranks of a machine may have been bound to some. */
int ranks_cores(void);

Group *ranks_split(int colour, const char *name);
Ticket ranks_all_reduce(Group *g, dev *x, int type, long n);
Ticket ranks_reduce_scatter(Group *g, dev *own, const dev *x, int type, long n);
Ticket ranks_all_gather(Group *g, dev *x, const dev *own, int type, long n);
Ticket ranks_pass(Group *g, int peer, const dev *x, size_t bytes);
Ticket ranks_receive(Group *g, int peer, dev *x, size_t bytes);
void ranks_join(Ticket t);
double ranks_sent(void);
double ranks_waited(void);
void ranks_end(void);
