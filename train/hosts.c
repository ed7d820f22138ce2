/* hosts.c - how the hosts of a run's processes talk.
 *
 * The ranks' hosts form a star of TCP connections with rank 0 in the middle. On each rank one
 * thread, the watcher, does all the reading: messages wait in a queue until the main thread asks
 * for them, so that the end of a connection is noticed while the main thread computes, and nobody
 * who sends ever waits for a reader who is busy. Only rank 0 sees every rank end; it tells the
 * others which one. A rank that leaves in good order says goodbye first.
 *
 * The watchdog: the watchers tell each other about once a second how far their main threads are.
 * Rank 0's judges: it ends all when a rank says nothing any more, or says again and again that its
 * main thread neither moves nor waits while others wait for it, or when all wait for each other.
 * Only time that the judge itself has lived through counts, so that a job that was stopped as a
 * whole may go on.
 *
 * Connections are neither encrypted nor proof against an attacker on the cluster's network:
 * strangers and other jobs are kept out by a key made from the job's name, no more. All ranks must
 * have the same byte order and be builds of the same version.
 *
 * Read in this order: messages, the end, the watchdog, the watcher, coming together, the calls.
 */
#include "train/hosts.h"
#include "util/calls.h"
#include "util/text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Numbers that begin what is sent: neither text nor the reverse of each other. */
#define HELLO_MAGIC   0x7669742e63a1b201u
#define WELCOME_MAGIC 0x7669742e63a1b202u
#define MESSAGE_MAGIC 0x76a1b203u
#define PROTOCOL      4u

/* Seconds between the news that all must end and this process's end. A main thread that is about to
 * fail for a reason of its own says the better one; and since some launchers kill all when one has
 * ended, those that have nothing to say wait for those that have. */
#define GRACE        0.2
#define GRACE_SILENT 0.7

/* ---- messages ---- */

/* PULSE: a Pulse. ENDED: two texts, why all must end and a hint; with count 1 it is to be said. */
enum { BROADCAST, SUM, GOODBYE, PULSE, ENDED };
static const char *const kinds[] = {"broadcast", "sum", "goodbye", "pulse", "end"};

typedef struct {
    uint32_t magic, kind;
    uint64_t count; /* of the calls so far: all ranks must be at the same one */
    uint64_t bytes; /* that follow */
} Header;

typedef struct Message {
    struct Message *next;
    Header header;
    unsigned char body[];
} Message;

/* How far a main thread is. */
typedef struct {
    uint64_t alive; /* signs of life so far */
    uint64_t step;
    uint32_t waits;   /* for another rank, or has since the last pulse */
    uint32_t in_call; /* waits in the call below; otherwise that is the last one */
    char doing[36];
    char call[80]; /* "all-reduce 341 of 4.2 MB (data parallel)"; "": none yet */
} Pulse;

/* What the watchdog knows of a rank; times as net.clock has it. */
typedef struct {
    Pulse last;
    double heard, moved, waited;
} Life;

typedef struct {
    int fd; /* -1: has not come yet */
    int rank;
    char host[64];
    bool goodbye;            /* has said so; guarded by net.lock, like the queue */
    Message *first, **last;  /* received, in order, for the main thread */
    pthread_mutex_t sending; /* one whole message at a time */
    /* the watcher's alone: what is being received */
    Header header;
    Message *message;
    size_t got; /* bytes, of the header and then of the body */
    Life life;
    bool gone; /* nothing more will come; guarded by net.lock */
} Peer;

static struct {
    World world;
    Peer *peer; /* rank 0: [ranks - 1], ranks 1, 2, ...; others: rank 0 alone */
    int peers;
    uint64_t count;
    pthread_t watcher;
    int wake[2]; /* a pipe: the watcher looks again at what to watch */
    pthread_mutex_t lock;
    pthread_cond_t news;
    bool closing; /* the watcher shall return */
    bool failing; /* all must end, */
    bool failed;  /* and the others have been told */
    bool speaks;  /* this rank says so: */
    char what[2048];
    char hint[256];
    /* the watchdog's */
    atomic_int patience; /* seconds; 0: it is off */
    double clock;        /* seconds that the watcher has lived */
    double looked_at;    /* when it last looked at the time */
    Life life;           /* of this rank, as its own watcher sees it */
    uint64_t waits;      /* calls of hosts_check as of the last pulse */
} net;

/* Where the main thread is; also written by threads that work for it. */
static struct {
    const char *_Atomic doing;
    _Atomic uint64_t step, waits;
    _Atomic uint64_t blocked; /* in a call here: net.count << 3 | kind, and 1 more; 0: in none */
} here = {.doing = "starting"};

static const char ended_hint[] =
    "its own message says why; where there is none, see that machine's system log (memory?)";
static const char stuck_hint[] =
    "see that machine's disk, network and device; if it was only slow, give a larger --watchdog";
static const char deadlock_hint[] =
    "see the network between the machines; if a step takes so long, give a larger --watchdog";

/* All of it, or false. */
static bool send_bytes(int fd, const void *data, size_t bytes)
{
    const char *p = data;
    while (bytes) {
        ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool send_message(Peer *p, int kind, uint64_t count, const void *data, size_t bytes)
{
    Header h = {MESSAGE_MAGIC, (uint32_t)kind, count, bytes};
    pthread_mutex_lock(&p->sending);
    bool ok = send_bytes(p->fd, &h, sizeof h) && send_bytes(p->fd, data, bytes);
    pthread_mutex_unlock(&p->sending);
    return ok;
}

/* Whether nobody else is sending to this peer any more, within so many seconds; it may be a thread
 * that was interrupted while it did. */
static bool may_send(Peer *p, double seconds)
{
    struct timespec until = deadline(CLOCK_REALTIME, seconds);
    return pthread_mutex_timedlock(&p->sending, &until) == 0;
}

/* Small, and from a thread that must not wait for long: left out where the peer does not read. */
static void send_pulse(Peer *p, const Pulse *pulse)
{
    struct pollfd room = {.fd = p->fd, .events = POLLOUT};
    Header h = {MESSAGE_MAGIC, PULSE, 0, sizeof *pulse};
    if (!may_send(p, 0.05))
        return;
    if (poll(&room, 1, 0) == 1 && room.revents == POLLOUT && send_bytes(p->fd, &h, sizeof h))
        send_bytes(p->fd, pulse, sizeof *pulse);
    pthread_mutex_unlock(&p->sending);
}

/* ---- the end ---- */

/* That all must end. To a peer whose machine is gone no more than a second goes. */
static void tell(Peer *p, bool speaks)
{
    char text[sizeof net.what + sizeof net.hint];
    size_t what = strlen(net.what) + 1, bytes = what + strlen(net.hint) + 1;
    Header h = {MESSAGE_MAGIC, ENDED, speaks, bytes};
    struct timeval second = {.tv_sec = 1};
    pthread_mutex_lock(&net.lock);
    int fd = p->fd;
    pthread_mutex_unlock(&net.lock);
    if (fd < 0 || !may_send(p, 1))
        return;
    memcpy(text, net.what, what);
    memcpy(text + what, net.hint, bytes - what);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof second);
    if (send_bytes(fd, &h, sizeof h))
        send_bytes(fd, text, bytes);
    pthread_mutex_unlock(&p->sending);
}

/* One rank of each machine says why all end: on rank 0's machine that is rank 0. */
static bool is_first_there(int peer)
{
    char own[64] = "";
    gethostname(own, sizeof own - 1);
    bool first = strcmp(net.peer[peer].host, own) != 0;
    pthread_mutex_lock(&net.lock);
    for (int i = 0; i < peer; i++)
        first &= net.peer[i].gone || strcmp(net.peer[i].host, net.peer[peer].host) != 0;
    pthread_mutex_unlock(&net.lock);
    return first;
}

/* Where rank 0 has ended, the others must know by themselves who says so. */
static bool speaks_without_rank_0(void)
{
    char own[64] = "";
    gethostname(own, sizeof own - 1);
    int local = net.world.local_rank;
    return local == 0 || (local == 1 && strcmp(net.peer[0].host, own) == 0);
}

/* The first reason stays. All that this rank is connected with are told before its own end: rank 0
 * tells the others; they tell it, and whether it shall say so. */
static void end_all(const char *what, const char *hint, bool speaks, bool rank_0_speaks)
{
    pthread_mutex_lock(&net.lock);
    bool first = !net.failing;
    net.failing = true;
    if (first) {
        snprintf(net.what, sizeof net.what, "%s", what);
        snprintf(net.hint, sizeof net.hint, "%s", hint);
        net.speaks = speaks;
    }
    pthread_mutex_unlock(&net.lock);
    for (int i = 0; first && i < net.peers; i++)
        tell(&net.peer[i], net.world.rank ? rank_0_speaks : is_first_there(i));
    pthread_mutex_lock(&net.lock);
    net.failed |= first;
    pthread_mutex_unlock(&net.lock);
    (void)!write(net.wake[1], "", 1);
}

static void peer_ended(const Peer *p)
{
    char what[128];
    snprintf(what, sizeof what, "rank %d (%s) ended", p->rank, p->host);
    end_all(what, ended_hint, net.world.rank == 0 || speaks_without_rank_0(), false);
}

/* What the others' messages begin with; rank 0's are everybody's. */
static const char *name_us(void)
{
    static char name[96];
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    snprintf(name, sizeof name, "rank %d (%s): ", net.world.rank, host);
    return net.world.rank > 0 ? name : NULL;
}

/* This rank has said why it ends, and leaves by itself: none on this machine need say more. */
static void say_farewell(void)
{
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    launch_tell(1);
    pthread_mutex_lock(&net.lock);
    bool first = !net.failing;
    net.failing = true;
    pthread_mutex_unlock(&net.lock);
    if (!first)
        return;
    snprintf(net.what, sizeof net.what, "rank %d (%s) ended", net.world.rank, host);
    snprintf(net.hint, sizeof net.hint, "%s", ended_hint);
    for (int i = 0; i < net.peers; i++) {
        bool elsewhere = strcmp(net.peer[i].host, host) != 0;
        tell(&net.peer[i], net.world.rank ? elsewhere : is_first_there(i));
    }
}

/* For the main thread, and those that work for it: the watcher ends the process. */
static _Noreturn void end_here(void)
{
    for (;;)
        pause();
}

static bool must_end(void)
{
    pthread_mutex_lock(&net.lock);
    bool failing = net.failing;
    pthread_mutex_unlock(&net.lock);
    return failing;
}

/* What is wrong with flags or files every rank finds, at about the same time: the first of a
 * machine says it, the others wait a moment for its farewell, each a little longer than the one
 * before: what only some of them find is said once too. */
static bool is_said(void)
{
    int local = net.world.local_rank;
    for (int i = 0; i < 30 + 2 * local && local > 0; i++) {
        if (must_end())
            return true;
        usleep(10000);
    }
    return false;
}

/* The watcher's last deed. exit() would take down libraries that the main thread is in, and may
 * wait, as that does, for a device that never answers. */
static _Noreturn void see_to_the_end(void)
{
    usleep((useconds_t)((net.speaks ? GRACE : GRACE_SILENT) * 1e6));
    if (ftrylockfile(stdout) == 0) {
        fflush(stdout);
        funlockfile(stdout);
    }
    if (net.speaks) {
        fprintf(stderr, "error: %s\nhint: %s\n", net.what, net.hint);
        launch_tell(1);
        if (die_hook)
            die_hook();
    }
    _exit(1);
}

/* ---- the watchdog ---- */

enum { PLACE = 160, TEXT_OF_PLACES = 800 }; /* characters */

/* Of r = 0 ... ranks - 1; NULL where it has left. On rank 0 alone. */
static const Life *life_of(int r)
{
    if (r == 0)
        return &net.life;
    const Peer *p = &net.peer[r - 1];
    return p->goodbye || p->gone ? NULL : &p->life;
}

static void note_pulse(Life *l, const Pulse *pulse)
{
    if (pulse->alive != l->last.alive)
        l->moved = net.clock;
    if (pulse->waits)
        l->waited = net.clock;
    l->heard = net.clock;
    l->last = *pulse;
    l->last.doing[sizeof l->last.doing - 1] = 0;
    l->last.call[sizeof l->last.call - 1] = 0;
}

static Pulse own_pulse(void)
{
    uint64_t waits = atomic_load(&here.waits), blocked = atomic_load(&here.blocked);
    Pulse p = {.alive = alive_count(),
               .step = atomic_load(&here.step),
               .waits = blocked || waits != net.waits};
    snprintf(p.doing, sizeof p.doing, "%s", atomic_load(&here.doing));
    p.in_call = call_text(p.call, sizeof p.call) || blocked;
    if (blocked)
        snprintf(p.call, sizeof p.call, "%s %llu of the hosts", kinds[(blocked - 1) & 7],
                 (unsigned long long)(blocked - 1) >> 3);
    net.waits = waits;
    return p;
}

/* "computing (step 12), in all-reduce 341 of 4.2 MB (data parallel)", or "after" that one */
static void name_place(char *out, size_t size, const Pulse *p)
{
    char step[32] = "";
    if (p->step)
        snprintf(step, sizeof step, " (step %llu)", (unsigned long long)p->step);
    const char *where = p->in_call ? ", in " : ", after ";
    snprintf(out, size, "%s%s%s%s", p->doing, step, *p->call ? where : "", p->call);
}

static bool same_place(const Pulse *a, const Pulse *b)
{
    return a->step == b->step && a->in_call == b->in_call && strcmp(a->doing, b->doing) == 0 &&
           strcmp(a->call, b->call) == 0;
}

/* "rank 2", or "ranks 1-3, 7": those of which[ranks] that do the same as `first`, struck out. */
static size_t name_group(char *out, size_t size, bool *which, int first)
{
    const Pulse *p = &life_of(first)->last;
    char ranks[128], place[PLACE];
    size_t n = 0;
    int several = 0;
    for (int r = first; r < net.world.ranks; r++) {
        int end = r;
        while (end < net.world.ranks && which[end] && same_place(&life_of(end)->last, p))
            which[end++] = false;
        if (end == r)
            continue;
        several += end - r;
        if (n + 32 < sizeof ranks)
            n += (size_t)snprintf(ranks + n, sizeof ranks - n, end - r > 1 ? "%s%d-%d" : "%s%d",
                                  n ? ", " : "", r, end - 1);
        r = end - 1;
    }
    name_place(place, sizeof place, p);
    return (size_t)snprintf(out, size, "rank%s %s %s", several > 1 ? "s" : "", ranks, place);
}

/* "ranks 0-2 computing (step 12); rank 3 reading images (step 12)" */
static void name_places(char *out, size_t size, bool *which)
{
    size_t n = 0;
    *out = 0;
    for (int r = 0; r < net.world.ranks; r++) {
        if (!which[r])
            continue;
        if (n + 2 * PLACE > size) {
            snprintf(out + n, size - n, "; ...");
            return;
        }
        n += (size_t)snprintf(out + n, size - n, n ? "; " : "");
        n += name_group(out + n, size - n, which, r);
    }
}

/* These ranks, to whom `what` has happened, are why all end; what follows for one, and for many.
 * Of those that wait it says where. */
static void blame(bool *which, bool *waiting, const char *what, const char *then_one,
                  const char *then_many)
{
    char text[sizeof net.what], places[TEXT_OF_PLACES], others[TEXT_OF_PLACES], host[64] = "";
    int many = 0, one = 0;
    for (int r = 0; r < net.world.ranks; r++) {
        waiting[r] &= !which[r];
        if (which[r]) {
            many++;
            one = r;
        }
    }
    name_places(others, sizeof others, waiting);
    const char *more = *others ? "; waiting: " : "";
    gethostname(host, sizeof host - 1);
    if (many == 1)
        name_place(places, sizeof places, &life_of(one)->last);
    else
        name_places(places, sizeof places, which);
    if (many == 1)
        snprintf(text, sizeof text, "rank %d (%s) has %s for %d s%s: it was %s%s%s", one,
                 one ? net.peer[one - 1].host : host, what, net.patience, then_one, places, more,
                 others);
    else
        snprintf(text, sizeof text, "%d ranks have %s for %d s%s: %s%s%s", many, what, net.patience,
                 then_many, places, more, others);
    end_all(text, stuck_hint, true, true);
}

/* On rank 0, at every tick. A rank is stuck that answers, but neither moves nor waits; that is a
 * fault once others wait for it, or where nobody moves. */
static void judge(double tick)
{
    int ranks = net.world.ranks, present = 0, silent = 0, stuck = 0, still = 0, waiting = 0;
    bool is_silent[ranks], is_stuck[ranks], is_still[ranks], is_waiting[ranks];
    double past = net.clock - net.patience, lately = net.clock - 3 * tick;
    for (int r = 0; r < ranks; r++) {
        const Life *l = life_of(r);
        is_silent[r] = l && l->heard < past;
        is_still[r] = l && l->moved < past && l->heard > lately;
        is_stuck[r] = is_still[r] && l->waited < past;
        present += l != NULL;
        silent += is_silent[r];
        stuck += is_stuck[r];
        still += is_still[r];
        is_waiting[r] = l && l->waited > lately;
        waiting += is_waiting[r];
    }
    if (silent) {
        blame(is_silent, is_waiting, "not answered", ", stopped or on a machine that hangs",
              ", stopped or on machines that hang");
    } else if (stuck && (waiting || stuck == present)) {
        const char *then = waiting ? ", and others wait" : "";
        blame(is_stuck, is_waiting, "done nothing", then, then);
    } else if (present > 1 && still == present) {
        char text[sizeof net.what], places[2 * TEXT_OF_PLACES];
        name_places(places, sizeof places, is_still);
        snprintf(text, sizeof text, "all ranks have waited for each other for %d s: %s",
                 net.patience, places);
        end_all(text, deadlock_hint, true, true);
    }
}

/* Elsewhere: whether rank 0 still answers. It judges the others first. */
static void judge_rank_0(double tick)
{
    const Peer *p = &net.peer[0];
    char text[512], place[PLACE], own[PLACE];
    if (p->goodbye || p->gone || p->life.heard > net.clock - net.patience - 4 * tick)
        return;
    name_place(place, sizeof place, &p->life.last);
    name_place(own, sizeof own, &net.life.last);
    snprintf(text, sizeof text,
             "rank 0 (%s) has not answered for %d s, stopped or on a machine that hangs: it was "
             "%s; rank %d: %s",
             p->host, net.patience, place, net.world.rank, own);
    end_all(text, stuck_hint, speaks_without_rank_0(), false);
}

/* Seconds between two pulses */
static double ticks(void)
{
    return fmin(net.patience / 8.0, 1);
}

/* At every tick, and in between where messages come. A process that was stopped meanwhile has not
 * lived through that time. */
static void look_around(void)
{
    double time = now(), tick = ticks(), passed = time - net.looked_at;
    if (!net.patience || passed < tick)
        return;
    net.looked_at = time;
    net.clock += fmin(passed, 2 * tick);
    Pulse pulse = own_pulse();
    note_pulse(&net.life, &pulse);
    for (int i = 0; i < net.peers; i++)
        if (!net.peer[i].gone)
            send_pulse(&net.peer[i], &pulse);
    if (net.world.rank == 0)
        judge(tick);
    else
        judge_rank_0(tick);
}

/* ---- the watcher ---- */

/* What is the watcher's own business; false: the main thread's. */
static bool attend(Peer *p, Message *m)
{
    char *text = (char *)m->body;
    size_t bytes = m->header.bytes, what;
    switch (m->header.kind) {
    case GOODBYE:
        pthread_mutex_lock(&net.lock);
        p->goodbye = true;
        pthread_cond_broadcast(&net.news);
        pthread_mutex_unlock(&net.lock);
        return true;
    case PULSE:
        note_pulse(&p->life, (Pulse *)text);
        return true;
    case ENDED:
        text[bytes - 1] = 0;
        what = strlen(text) + 1;
        end_all(text, what < bytes ? text + what : "", m->header.count, false);
        return true;
    default:
        return false;
    }
}

/* A whole message. */
static void deliver(Peer *p)
{
    Message *m = p->message;
    p->message = NULL;
    p->got = 0;
    p->life.heard = net.clock;
    if (attend(p, m)) {
        free(m);
        return;
    }
    pthread_mutex_lock(&net.lock);
    *p->last = m;
    p->last = &m->next;
    pthread_cond_broadcast(&net.news);
    pthread_mutex_unlock(&net.lock);
}

static bool makes_sense(const Header *h)
{
    if (h->magic != MESSAGE_MAGIC || h->bytes > SIZE_MAX / 2 || h->kind > ENDED)
        return false;
    return h->kind == PULSE ? h->bytes == sizeof(Pulse) : h->kind != ENDED || h->bytes > 0;
}

/* Reads what is there. False: the connection has ended, or what came makes no sense. */
static bool receive(Peer *p)
{
    for (;;) {
        char *to = p->message ? (char *)p->message->body : (char *)&p->header;
        size_t size = p->message ? p->header.bytes : sizeof p->header;
        if (p->got < size) {
            ssize_t n = recv(p->fd, to + p->got, size - p->got, MSG_DONTWAIT);
            if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return true;
            if (n <= 0)
                return false;
            p->got += (size_t)n;
            if (p->got < size)
                continue;
        }
        if (!p->message) {
            const Header *h = &p->header;
            p->message = makes_sense(h) ? malloc(sizeof *p->message + h->bytes) : NULL;
            if (!p->message)
                return false;
            *p->message = (Message){.header = *h};
            p->got = 0;
        }
        if (p->got == p->header.bytes)
            deliver(p);
    }
}

/* The watcher. It looks anew at whom to watch whenever something is written to net.wake. */
static void *watch(void *arg)
{
    (void)arg;
    struct pollfd *fds = xcalloc((size_t)net.peers + 1, sizeof *fds);
    for (;;) {
        pthread_mutex_lock(&net.lock);
        bool closing = net.closing, failed = net.failed;
        int tick = net.patience ? (int)(1000 * ticks()) : -1;
        fds[0] = (struct pollfd){.fd = net.wake[0], .events = POLLIN};
        for (int i = 0; i < net.peers; i++)
            fds[i + 1] =
                (struct pollfd){.fd = net.peer[i].gone ? -1 : net.peer[i].fd, .events = POLLIN};
        pthread_mutex_unlock(&net.lock);
        if (failed)
            see_to_the_end();
        if (closing)
            break;
        bool some = poll(fds, (nfds_t)net.peers + 1, tick) > 0;
        char drain[64];
        if (some && fds[0].revents)
            (void)!read(net.wake[0], drain, sizeof drain);
        for (int i = 0; some && i < net.peers; i++) {
            Peer *p = &net.peer[i];
            if (fds[i + 1].fd < 0 || !fds[i + 1].revents || receive(p))
                continue;
            pthread_mutex_lock(&net.lock);
            p->gone = true;
            pthread_mutex_unlock(&net.lock);
            shutdown(p->fd, SHUT_RDWR); /* open yet: the main thread may be sending */
            if (!p->goodbye)
                peer_ended(p);
        }
        look_around();
    }
    free(fds);
    return NULL;
}

/* ---- coming together ---- */

typedef struct {
    uint64_t magic, key, build;
    uint32_t version, ranks, rank, zero;
    char host[64];
} Hello;

enum { ADMITTED, OTHER_VERSION, OTHER_JOB, OTHER_SIZE, NO_SUCH_RANK, TWICE, OTHER_BUILD };
static const char *const refusals[] = {
    NULL,
    "it is another version of this program",
    "it belongs to another job",
    "it counts another number of ranks",
    "there is no such rank",
    "that rank is here already",
    "it is another build of this program",
};

static const char build_hint[] =
    "start the same file on every machine (cmp, or md5sum): build it once, and copy it";

typedef struct {
    uint64_t magic;
    uint32_t refusal, ranks;
    char host[64];
} Welcome;

static int timeout_seconds(void)
{
    Error e = {"", ""};
    int seconds = launch_env_int("VIT_DIST_TIMEOUT", 1, 1 << 20, 120, &e);
    if (*e.what)
        die("it is in seconds", "%s", e.what);
    return seconds;
}

/* Small messages go at once; a machine that vanishes without a word is noticed in half a minute. */
static void set_up_socket(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {{IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},
                   {IPPROTO_TCP, TCP_KEEPIDLE, 10}, {IPPROTO_TCP, TCP_KEEPINTVL, 5},
                   {IPPROTO_TCP, TCP_KEEPCNT, 4},   {IPPROTO_TCP, TCP_USER_TIMEOUT, 30000}};
    struct timeval forever = {0};
    for (int i = 0; i < COUNT(options); i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &forever, sizeof forever);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &forever, sizeof forever);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

/* The launcher's socket, or one of our own, for which an ending job may have to make room. */
static int open_listener(const Place *p, double until)
{
    Error e = {"", ""};
    char why[256] = "";
    int fd = launch_env_int("VIT_DIST_FD", 3, 1 << 20, -1, &e), listening = 0;
    socklen_t size = sizeof listening;
    unsetenv("VIT_DIST_FD");
    if (fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        return fd;
    }
    double patience = now() + 10 < until ? now() + 10 : until;
    while ((fd = launch_listen(p->host, p->port, why, sizeof why)) < 0) {
        if (now() > patience)
            die("another job may be using it: set VIT_PORT to a free port, the same on every rank",
                "rank 0 cannot listen on port %d: %s", p->port, why);
        usleep(100000);
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

/* Who has knocked, but not yet said all of its name. */
typedef struct {
    int fd;
    double since; /* when it came */
    size_t got;   /* bytes of its hello */
    Hello hello;
} Guest;

/* Whether who introduces itself so may come in. */
static int refusal_of(const Hello *h, const Place *place)
{
    if (h->version != PROTOCOL)
        return OTHER_VERSION;
    if (h->key != place->key)
        return OTHER_JOB;
    if (h->build != place->build)
        return OTHER_BUILD;
    if (h->ranks != (uint32_t)net.world.ranks)
        return OTHER_SIZE;
    if (h->rank == 0 || h->rank >= h->ranks)
        return NO_SUCH_RANK;
    return net.peer[h->rank - 1].fd >= 0 ? TWICE : ADMITTED;
}

/* A rank of this job that can be none ends all. */
static void refuse_all(const Hello *h)
{
    char what[160];
    snprintf(what, sizeof what, "refused rank %u (%s): %s", h->rank, h->host,
             refusals[OTHER_BUILD]);
    end_all(what, build_hint, true, true);
    end_here();
}

/* Reads on; true when nothing more is to be done with this guest. Those who do not speak as we do
 * are strangers, or not for long: they are not answered. */
static bool greet(Guest *g, const Place *place, int *come)
{
    ssize_t n = recv(g->fd, (char *)&g->hello + g->got, sizeof g->hello - g->got, MSG_DONTWAIT);
    if (n > 0)
        g->got += (size_t)n;
    bool stranger = g->got >= sizeof g->hello.magic && g->hello.magic != HELLO_MAGIC;
    bool waits = n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
    if (g->got < sizeof g->hello && !stranger && waits && now() - g->since < 5)
        return false;
    if (g->got < sizeof g->hello || stranger) {
        close(g->fd);
        return true;
    }
    Hello *h = &g->hello;
    Welcome w = {WELCOME_MAGIC, (uint32_t)refusal_of(h, place), (uint32_t)net.world.ranks, ""};
    gethostname(w.host, sizeof w.host - 1);
    h->host[sizeof h->host - 1] = 0;
    set_up_socket(g->fd);
    if (!send_bytes(g->fd, &w, sizeof w) || w.refusal != ADMITTED) {
        if (w.refusal == OTHER_BUILD) /* no better one will come */
            refuse_all(h);
        if (w.refusal != ADMITTED && w.refusal != OTHER_JOB)
            warn("refused rank %u (%s): %s", h->rank, h->host, refusals[w.refusal]);
        close(g->fd);
        return true;
    }
    pthread_mutex_lock(&net.lock);
    Peer *p = &net.peer[h->rank - 1];
    memcpy(p->host, h->host, sizeof p->host);
    p->fd = g->fd;
    ++*come;
    pthread_mutex_unlock(&net.lock);
    (void)!write(net.wake[1], "", 1);
    return true;
}

/* The ranks that have not come: "2", "1, 3", "1, 2, 5, ..." */
static const char *missing(char *out, size_t size)
{
    size_t n = 0;
    for (int i = 0; i < net.peers && n < size - 32; i++)
        if (net.peer[i].fd < 0)
            n += (size_t)snprintf(out + n, size - n, "%s%d", n ? ", " : "", i + 1);
    if (n >= size - 32)
        snprintf(out + n, size - n, ", ...");
    return out;
}

/* Rank 0: until every other rank has come. */
static void gather(const Place *place, double until)
{
    Guest guest[64];
    struct pollfd fds[COUNT(guest) + 1];
    char list[128];
    int guests = 0, come = 1, ranks = net.world.ranks, listener = open_listener(place, until);
    fcntl(listener, F_SETFL, fcntl(listener, F_GETFL) | O_NONBLOCK);
    while (come < ranks) {
        fds[0] = (struct pollfd){.fd = guests < COUNT(guest) ? listener : -1, .events = POLLIN};
        for (int i = 0; i < guests; i++)
            fds[i + 1] = (struct pollfd){.fd = guest[i].fd, .events = POLLIN};
        poll(fds, (nfds_t)guests + 1, 100);
        if (must_end())
            end_here();
        for (int i = guests - 1; i >= 0; i--)
            if (greet(&guest[i], place, &come))
                guest[i] = guest[--guests];
        int fd = fds[0].revents ? accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
        if (fd >= 0)
            guest[guests++] = (Guest){.fd = fd, .since = now()};
        if (now() > until && come < ranks) {
            char what[512];
            snprintf(what, sizeof what,
                     "%d of %d ranks came to %s port %d within %d s; missing: %s", come, ranks,
                     place->host, place->port, timeout_seconds(), missing(list, sizeof list));
            end_all(what,
                    "start all of them; VIT_DIST_TIMEOUT gives them more seconds, and a firewall "
                    "may be in between",
                    true, true);
            end_here();
        }
    }
    for (int i = 0; i < guests; i++)
        close(guest[i].fd);
    close(listener);
}

/* A connection, or -1 and why. While nobody listens there, a socket can be given that very port and
 * connect to itself: that is nobody. */
static int connect_once(const struct addrinfo *a, char *why, size_t size)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), error = 0;
    struct timeval patience = {.tv_sec = 3};
    struct sockaddr_storage own = {0}, other = {0};
    socklen_t own_size = sizeof own, other_size = sizeof other;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (fd < 0 || connect(fd, a->ai_addr, a->ai_addrlen) != 0)
        error = errno == EINPROGRESS ? ETIMEDOUT : errno;
    if (!error && (getsockname(fd, (struct sockaddr *)&own, &own_size) != 0 ||
                   getpeername(fd, (struct sockaddr *)&other, &other_size) != 0 ||
                   (own_size == other_size && memcmp(&own, &other, own_size) == 0)))
        error = ECONNREFUSED;
    if (!error)
        return fd;
    snprintf(why, size, "%s", strerror(error));
    if (fd >= 0)
        close(fd);
    return -1;
}

/* The first of the host's addresses that answers. */
static int connect_any(const char *host, int port, char *why, size_t size)
{
    struct addrinfo *list = launch_resolve(host, port, 0, why, size);
    int fd = -1;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
        fd = connect_once(a, why, size);
    if (list)
        freeaddrinfo(list);
    return fd;
}

/* Shows who we are. True: admitted; otherwise there is a reason to try again. */
static bool introduce(int fd, const Place *place, double until, char *why, size_t size)
{
    Hello h = {HELLO_MAGIC,
               place->key,
               place->build,
               PROTOCOL,
               (uint32_t)net.world.ranks,
               (uint32_t)net.world.rank,
               0,
               ""};
    Welcome w;
    double left = until - now();
    struct timeval patience = {.tv_sec = (long)fmin(fmax(left, 1), 5)};
    gethostname(h.host, sizeof h.host - 1);
    set_up_socket(fd);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (!send_bytes(fd, &h, sizeof h) || recv(fd, &w, sizeof w, MSG_WAITALL) != sizeof w ||
        w.magic != WELCOME_MAGIC || w.refusal >= COUNT(refusals)) {
        snprintf(why, size, "another program answers there, or none");
        return false;
    }
    w.host[sizeof w.host - 1] = 0;
    if (w.refusal == OTHER_JOB) {
        snprintf(why, size, "another job's rank 0 (%s) answers there", w.host);
        return false;
    }
    if (w.refusal != ADMITTED)
        die(w.refusal == OTHER_BUILD
                ? build_hint
                : "start every rank once, with the same program and the same number of ranks",
            "rank 0 (%s, of %u ranks) refused rank %d of %d: %s", w.host, w.ranks, net.world.rank,
            net.world.ranks, refusals[w.refusal]);
    set_up_socket(fd);
    memcpy(net.peer[0].host, w.host, sizeof w.host);
    return true;
}

/* Every other rank: rank 0 may be minutes late, and its host's name not known yet. */
static void join(const Place *place, double until)
{
    char why[256] = "";
    for (double pause = 0.02;; pause = pause < 0.5 ? 2 * pause : 1) {
        int fd = connect_any(place->host, place->port, why, sizeof why);
        if (fd >= 0 && introduce(fd, place, until, why, sizeof why)) {
            net.peer[0].fd = fd;
            return;
        }
        if (fd >= 0)
            close(fd);
        if (now() + pause > until)
            die("see whether rank 0 runs there, and no firewall is in between; VIT_PORT takes "
                "another "
                "port, VIT_DIST_TIMEOUT more seconds",
                "rank %d of %d could not reach rank 0 at %s port %d within %d s: %s",
                net.world.rank, net.world.ranks, place->host, place->port, timeout_seconds(), why);
        usleep((useconds_t)(pause * 1e6));
    }
}

/* Signals are the main thread's. */
static void start_watcher(void)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&net.watcher, NULL, watch, NULL) != 0)
        die("raise the limit of processes (ulimit -u)", "cannot start a thread");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Connects all ranks. Rank 0's watcher runs before it gathers: who has come may be gone again. */
static void open_net(const Place *place)
{
    World w = place->world;
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* one socket a rank */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&net.news, &attr);
    pthread_mutex_init(&net.lock, NULL);
    if (pipe2(net.wake, O_CLOEXEC | O_NONBLOCK) != 0)
        die("raise the limit of open files (ulimit -n)", "cannot make a pipe: %s", strerror(errno));
    net.world = w;
    net.peers = w.rank == 0 ? w.ranks - 1 : 1;
    net.peer = xcalloc((size_t)net.peers, sizeof *net.peer);
    for (int i = 0; i < net.peers; i++) {
        Peer *p = &net.peer[i];
        p->fd = -1;
        p->rank = w.rank == 0 ? i + 1 : 0;
        p->last = &p->first;
        strcpy(p->life.last.doing, "starting");
        pthread_mutex_init(&p->sending, NULL);
    }
    double until = now() + timeout_seconds();
    if (w.rank != 0)
        join(place, until);
    start_watcher();
    die_farewell = say_farewell;
    die_is_said = is_said;
    die_from = name_us();
    if (w.rank == 0)
        gather(place, until);
    hosts_barrier();
}

World hosts_start(int wanted, bool mpi, char **argv)
{
    const char *flag = mpi ? "--ranks" : "--gpus";
    Error e = {"", ""};
    Place p;
    if (!launch_environment(&p, &e))
        die(e.hint, "%s", e.what);
    launch_tell_at_exit();
    int ranks = p.world.ranks;
    bool fits = wanted <= 1 || wanted == ranks || wanted == p.world.local_ranks ||
                (!p.world.local_ranks && ranks % wanted == 0);
    char hint[96];
    snprintf(hint, sizeof hint, "leave %s out: the launcher says how many processes there are",
             flag);
    bool nested = mpi && p.launcher && strncmp(p.launcher, "mpi", 3) == 0; /* mpirun in mpirun */
    if ((ranks > 1 || nested) && !fits)
        die_usage(hint, "%s %d, but %s has started %s", flag, wanted, p.launcher,
                  amount(ranks, "process").s);
    if (ranks == 1 && wanted > 1)
        (mpi ? launch_mpirun : launch_ranks)(wanted, argv);
    int tasks = launch_env_int("SLURM_NTASKS", 1, 1 << 20, 1, &e);
    if (!p.launcher && tasks > 1 && getenv("SLURM_PROCID"))
        warn("one process alone, though the Slurm job has %d tasks: srun starts them all", tasks);
    if (ranks > 1)
        open_net(&p);
    return p.world;
}

/* ---- the calls ---- */

static _Noreturn void out_of_step(int rank, const Header *h, int kind, size_t bytes)
{
    static const char mistake[] = "this is a mistake in the program, or the ranks' settings differ";
    if (!h)
        die(mistake, "rank %d has ended its work while rank %d goes on", rank, net.world.rank);
    die(mistake,
        "ranks out of step: rank %d is at call %llu (%s of %llu bytes), rank %d at %llu (%s of "
        "%zu)",
        rank, (unsigned long long)h->count, kinds[h->kind], (unsigned long long)h->bytes,
        net.world.rank, (unsigned long long)net.count, kinds[kind], bytes);
}

/* In a call of this kind, waits until p has said goodbye or, with `or_message`, something else;
 * returns its next message, which stays in the queue. Where all must end, this rank ends here. */
static Message *wait_for(Peer *p, int kind, bool or_message)
{
    atomic_store(&here.blocked, (net.count << 3 | (unsigned)kind) + 1);
    pthread_mutex_lock(&net.lock);
    while (!net.failing && !p->goodbye && !(or_message && p->first))
        pthread_cond_wait(&net.news, &net.lock);
    Message *m = p->first;
    pthread_mutex_unlock(&net.lock);
    atomic_store(&here.blocked, 0);
    alive();
    if (must_end())
        end_here();
    return m;
}

/* The next message of p, which must be this one; its body goes to `to`. */
static void take(Peer *p, int kind, void *to, size_t bytes)
{
    Message *m = wait_for(p, kind, true);
    if (!m || m->header.kind != (uint32_t)kind || m->header.count != net.count ||
        m->header.bytes != bytes)
        out_of_step(p->rank, m ? &m->header : NULL, kind, bytes);
    memcpy(to, m->body, bytes);
    pthread_mutex_lock(&net.lock);
    p->first = m->next;
    if (!p->first)
        p->last = &p->first;
    pthread_mutex_unlock(&net.lock);
    free(m);
}

/* Where the connection has ended, the watcher will know why. */
static void give(Peer *p, int kind, const void *data, size_t bytes)
{
    if (!must_end() && send_message(p, kind, net.count, data, bytes))
        return;
    wait_for(p, kind, false);
    out_of_step(p->rank, NULL, kind, bytes);
}

/* To all that this rank is connected with: rank 0's way to everyone. */
static void give_all(int kind, const void *data, size_t bytes)
{
    for (int i = 0; i < net.peers; i++)
        give(&net.peer[i], kind, data, bytes);
}

void hosts_broadcast(void *data, size_t bytes)
{
    if (!net.peers)
        return;
    if (net.world.rank == 0)
        give_all(BROADCAST, data, bytes);
    else
        take(&net.peer[0], BROADCAST, data, bytes);
    net.count++;
}

void hosts_sum(double *x, int n)
{
    if (!net.peers)
        return;
    size_t bytes = (size_t)n * sizeof *x;
    if (net.world.rank == 0) {
        double *other = xmalloc(bytes);
        for (int i = 0; i < net.peers; i++) {
            take(&net.peer[i], SUM, other, bytes);
            for (int k = 0; k < n; k++)
                x[k] += other[k];
        }
        free(other);
        give_all(SUM, x, bytes);
    } else {
        give(&net.peer[0], SUM, x, bytes);
        take(&net.peer[0], SUM, x, bytes);
    }
    net.count++;
}

void hosts_barrier(void)
{
    double nothing = 0;
    hosts_sum(&nothing, 0);
}

const char *hosts_name(int rank)
{
    static char own[64];
    if (rank != net.world.rank)
        return net.peer[net.world.rank == 0 ? rank - 1 : 0].host;
    gethostname(own, sizeof own - 1);
    return own;
}

void hosts_check(void)
{
    atomic_fetch_add(&here.waits, 1);
    if (net.peers && must_end())
        end_here();
}

void hosts_die(const char *hint, const char *fmt, ...)
{
    char what[sizeof net.what];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    if (!net.peers)
        die(hint, "%s", what);
    end_all(what, hint, net.world.local_rank == 0, true);
    end_here();
}

void hosts_at(const char *doing, uint64_t step)
{
    atomic_store(&here.doing, doing);
    atomic_store(&here.step, step);
    alive();
}

void hosts_watch(int seconds)
{
    hosts_broadcast(&seconds, sizeof seconds);
    if (!net.peers)
        return;
    pthread_mutex_lock(&net.lock);
    net.looked_at = now();
    net.patience = seconds;
    pthread_mutex_unlock(&net.lock);
    (void)!write(net.wake[1], "", 1);
}

/* Rank 0 is the last to say it. */
void hosts_end(void)
{
    if (!net.peers)
        return;
    if (net.world.rank != 0)
        give_all(GOODBYE, NULL, 0);
    for (int i = 0; i < net.peers; i++) {
        const Message *more = wait_for(&net.peer[i], GOODBYE, true);
        if (more)
            out_of_step(net.peer[i].rank, &more->header, GOODBYE, 0);
    }
    if (net.world.rank == 0)
        for (int i = 0; i < net.peers; i++)
            send_message(&net.peer[i], GOODBYE, net.count, NULL, 0);
    die_farewell = NULL;
    die_is_said = NULL;
    die_from = NULL;
    pthread_mutex_lock(&net.lock);
    net.closing = true;
    pthread_mutex_unlock(&net.lock);
    (void)!write(net.wake[1], "", 1);
    pthread_join(net.watcher, NULL);
    for (int i = 0; i < net.peers; i++) {
        close(net.peer[i].fd);
        pthread_mutex_destroy(&net.peer[i].sending);
    }
    close(net.wake[0]);
    close(net.wake[1]);
    free(net.peer);
    net.peer = NULL;
    net.peers = 0;
}
