/* team.h - test programs that start themselves again as several ranks: by mpirun for the CPU
 * backend, by the program's own launcher for CUDA's.
 *
 *   argc = device_options(argc, argv);
 *   if (!team_possible())      (where it has said why, and counted a skip)
 *       return check_report();
 *   team_start(ranks);         (never returns in the process that starts the others)
 *   ... `team` says which rank this is; each counts its own checks, rank 0 skips
 *   return team_report();      (rank 0 prints the sum of all)
 */
#pragma once

#include "check.h"
#include "device.h"
#include "train/hosts.h"

static World team;

/* AddressSanitizer asks this: MPI keeps what it has until the end. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

static bool team_possible(void)
{
    if (!under.cpu)
        return true;
#ifndef HAVE_MPI
    SKIP("built without MPI");
    return false;
#else
    if (system("command -v mpirun >/dev/null") == 0)
        return true;
    SKIP("no mpirun");
    return false;
#endif
}

/* Sums between ranks are ordered, so that their bits are known. */
static void team_start(int ranks)
{
    char devices[16];
    snprintf(devices, sizeof devices, "%d", ranks);
    setenv("VIT_STANDIN_DEVICES", devices, 0);
    team = hosts_start(ranks, under.cpu, under.argv);
    under.be->init(&(Device){.threads = 1,
                             .type = under.type,
                             .tf32 = under.tf32,
                             .measure = under.measure,
                             .rank = team.rank,
                             .ranks = team.ranks,
                             .local_rank = team.local_rank,
                             .ordered = true,
                             .broadcast = hosts_broadcast,
                             .check = hosts_check});
}

static int team_report(void)
{
    double sums[] = {check_passed, check_failed};
    hosts_sum(sums, COUNT(sums));
    check_passed = (int)sums[0];
    check_failed = (int)sums[1];
    under.be->end();
    hosts_end();
    return team.rank == 0 ? check_report() : 0;
}
