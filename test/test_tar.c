/* test_tar.c - brace patterns, tar files and index files: what is written, and what is refused.
 *
 * Archives are put together here block by block, so that each field can be wrong on purpose.
 */
#include "check.h"

#include "datasets/dali_index.h"
#include "datasets/tar.h"
#include "util/files.h"
#include "util/names.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <signal.h>
#include <unistd.h>

static char dir[] = "/tmp/test_tar.XXXXXX";

static const char *in_dir(const char *name)
{
    static char path[4][256];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

static const char *write_bytes(const char *name, const void *bytes, size_t n)
{
    const char *path = in_dir(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0)
        die("see whether /tmp is full", "%s: cannot write", path);
    return path;
}

/* ---- braces ---- */

/* Names joined by blanks, or "error". */
static const char *expanded(const char *pattern)
{
    static char joined[4096];
    Names l = {0};
    Error e = {"", ""};
    bool ok = brace_expand(pattern, &l, &e);
    joined[0] = 0;
    for (int i = 0; ok && i < l.n; i++)
        snprintf(joined + strlen(joined), sizeof joined - strlen(joined), i ? " %s" : "%s",
                 l.at[i]);
    CHECK(ok ? brace_count(pattern, NULL) == l.n : l.n == 0 && *e.what && *e.hint, "%s", pattern);
    names_free(&l);
    return ok ? joined : "error";
}

static void test_braces(void)
{
    static const char *const cases[][2] = {
        {"plain.tar", "plain.tar"},
        {"", ""},
        {"a{b,c}d", "abd acd"},
        {"{a,b}{1,2}", "a1 a2 b1 b2"},
        {"x{a,b{1..3},c}", "xa xb1 xb2 xb3 xc"},
        {"{,a}", " a"},
        {"{08..11}", "08 09 10 11"},
        {"{8..11}", "8 9 10 11"},
        {"{1..010}", "001 002 003 004 005 006 007 008 009 010"},
        {"s-{000000..000002}.tar", "s-000000.tar s-000001.tar s-000002.tar"},
        {"{3..1}", "3 2 1"},
        {"{1..9..4}", "1 5 9"},
        {"{9..1..4}", "9 5 1"},
        {"{1..9..-4}", "1 5 9"},
        {"{-1..1}", "-1 0 1"},
        {"{-01..1}", "-01 000 001"},
        {"{0..0}", "0"},
        {"{{a,b},{c,{d,e}}}", "a b c d e"},
        {"{0..1}/{0..1}/{x,y}", "0/0/x 0/0/y 0/1/x 0/1/y 1/0/x 1/0/y 1/1/x 1/1/y"},
        {"a\\{b\\,c\\}", "a{b,c}"},
        {"a,b", "a,b"},
        {"{a\\,b,c}", "a,b c"},
        {"{a,b", "error"},
        {"a,b}", "error"},
        {"{a}", "error"},
        {"{}", "error"},
        {"{000000-000146}", "error"},
        {"{1..}", "error"},
        {"{1...3}", "error"},
        {"{1..3..0}", "error"},
        {"{1..3..}", "error"},
        {"{a..c}", "error"},
        {"{{1..3}", "error"},
        {"}{", "error"},
        {"{1..10000001}", "error"},
        {"{0..9999}{0..9999}", "error"},
        {"{-999999999999999999..999999999999999999}", "error"},
        {"{1..99999999999999999999}", "error"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        const char *got = expanded(cases[i][0]);
        CHECK(strcmp(got, cases[i][1]) == 0, "%s gives '%s'", cases[i][0], got);
    }
    CHECK(brace_count("{-999999999999999999..999999999999999999..999999999999999999}", NULL) == 3);
    CHECK(brace_count("{1..10000000}", NULL) == 10000000);
    char bomb[5000];
    memset(bomb, '{', 4000);
    memset(bomb + 4000, '}', 90);
    bomb[4090] = 0;
    CHECK(strcmp(expanded(bomb), "error") == 0);
    for (int i = 0; i < 1000; i++) /* 2^1000 names */
        memcpy(bomb + 4 * i, "{,x}", 4);
    bomb[4000] = 0;
    CHECK(strcmp(expanded(bomb), "error") == 0);
    memset(bomb, 'a', 4097);
    bomb[4097] = 0;
    CHECK(strcmp(expanded(bomb), "error") == 0);
}

/* ---- archives, block by block ---- */

static uint8_t tar[1 << 16];
static const uint8_t zeros[2048];
static size_t tar_n;

/* The sum over a header's bytes is written last, where `h` may be changed before. */
static void seal(uint8_t *h)
{
    unsigned sum = 0;
    memset(h + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += h[i];
    snprintf((char *)h + 148, 8, "%06o", sum);
}

/* A header, and `n` bytes of data. */
static uint8_t *member(char type, const char *name, const void *data, size_t n)
{
    uint8_t *h = tar + tar_n;
    memset(h, 0, 512 + (n + 511) / 512 * 512);
    memcpy(h, name, strlen(name));
    memcpy(h + 100, "0000644", 7);
    snprintf((char *)h + 124, 12, "%011zo", n);
    h[156] = (uint8_t)type;
    memcpy(h + 257, "ustar\00000", 8);
    if (n)
        memcpy(h + 512, data, n);
    seal(h);
    tar_n += 512 + (n + 511) / 512 * 512;
    return h;
}

static void end(void)
{
    memset(tar + tar_n, 0, 1024);
    tar_n += 1024;
}

/* `length key=value\n` */
static void pax(char type, const char *key, const char *value)
{
    char text[8192];
    size_t plain = strlen(key) + strlen(value) + 3, n = plain + 1;
    while (n != plain + (size_t)snprintf(NULL, 0, "%zu", n))
        n++;
    snprintf(text, sizeof text, "%zu %s=%s\n", n, key, value);
    member(type, "PaxHeaders/0", text, n);
}

/* What is in an archive, one `name@offset+size` a line. */
static bool list_member(void *ctx, const TarMember *m, Error *e)
{
    (void)e;
    char *text = ctx;
    size_t n = strlen(text);
    CHECK(m->ext == m->stem + 1 && m->name[m->stem] == '.', "%s", m->name);
    CHECK(!strchr(m->name + m->ext, '/') && m->offset % 512 == 0);
    snprintf(text + n, 8192 - n, "%s@%d+%d\n", m->name, (int)m->offset, (int)m->size);
    return true;
}

static Error why;

static const char *listed(void)
{
    static char text[8192];
    const char *path = write_bytes("t.tar", tar, tar_n);
    text[0] = 0;
    why = (Error){"", ""};
    bool ok = tar_read(path, list_member, text, NULL, &why);
    CHECK(ok || (strstr(why.what, path) && *why.hint), "'%s'", why.what);
    return ok ? text : "error";
}

/* The archive is refused, with a text and at an offset. */
static void refused(const char *text, int at)
{
    char byte[32];
    const char *got = listed();
    CHECK(strcmp(got, "error") == 0, "wanted %s, got '%s'", text, got);
    CHECK(strstr(why.what, text) != NULL, "wanted %s: '%s'", text, why.what);
    snprintf(byte, sizeof byte, "byte %d:", at);
    CHECK(at < 0 || strstr(why.what, byte), "wanted %s: '%s'", byte, why.what);
    tar_n = 0;
}

static void accepted(const char *want)
{
    const char *got = listed();
    CHECK(strcmp(got, want) == 0, "'%s', wanted '%s': %s", got, want, why.what);
    tar_n = 0;
}

static void test_members(void)
{
    member('0', "0000001.cls", "7", 1);
    member('0', "0000001.jpg", "jpegjpeg", 8);
    member(0, "d/0000002.seg.png", "x", 1);
    end();
    accepted("0000001.cls@512+1\n0000001.jpg@1536+8\nd/0000002.seg.png@2560+1\n");
    member('7', "a.jpg", "x", 1); /* no closing blocks */
    accepted("a.jpg@512+1\n");
    member('0', "a.jpg", "x", 1);
    tar_n -= 511; /* nor the padding of the last member */
    accepted("a.jpg@512+1\n");
    member('0', "a.jpg", "x", 1);
    end();
    member('0', "b.jpg", "x", 1); /* behind the end */
    accepted("a.jpg@512+1\n");

    member('5', "d.d/", "", 0); /* passed over */
    member('2', "link.jpg", "", 0);
    member('1', "hard.jpg", "", 0);
    member('3', "dev.jpg", "", 0);
    member(0, "old.dir/", "", 0);
    member('0', "d/.hidden.jpg", "x", 1);
    member('0', ".hidden", "x", 1);
    member('0', "README", "x", 1);
    member('0', "v1.0/README", "x", 1);
    member('V', "volume.x", "", 0);
    member('Z', "unknown.jpg", "xyz", 3);
    member('0', "", "x", 1);
    member('0', "a.b/c.jpg", "", 0);
    end();
    accepted("a.b/c.jpg@9728+0\n");

    /* a link has no data, whatever size its header states */
    for (char type = '1'; type <= '2'; type++) {
        uint8_t *h = member(type, "link.jpg", "", 0);
        memcpy(h + 124, "00000001000", 11);
        seal(h);
        member('0', "a.jpg", "x", 1);
        accepted("a.jpg@1024+1\n");
    }
}

/* Links, and an archive that nothing ends, are told. */
static void test_rest(void)
{
    static const char *const links[] = {"a.jpg", "folder/b.cls", ".hidden", "folder"};
    for (int i = 0; i < 4; i++) {
        TarRest rest;
        char text[8192] = "";
        tar_n = 0;
        for (int k = 0; k < COUNT(links); k++)
            member(i & 1 ? '2' : '1', links[k], "", 0);
        member('0', "c.jpg", "x", 1);
        if (i & 2)
            end();
        CHECK(tar_read(write_bytes("t.tar", tar, tar_n), list_member, text, &rest, &why), "%s",
              why.what);
        CHECK(rest.links == 2 && rest.open == !(i & 2), "%ld links, open %d", rest.links,
              rest.open);
    }
    tar_n = 0;
}

static void test_names(void)
{
    uint8_t *h = member('0', "c.jpg", "x", 1);
    memcpy(h + 345, "a/b", 3);
    seal(h);
    h = member('0', "c.jpg", "x", 1); /* GNU's old format has other things there */
    memcpy(h + 345, "a/b", 3);
    memcpy(h + 257, "ustar  ", 8);
    seal(h);
    accepted("a/b/c.jpg@512+1\nc.jpg@1536+1\n");

    char name[300], want[1024];
    memset(name, 'n', 250);
    strcpy(name + 250, ".jpg");
    member('K', "././@LongLink", "target", 7);
    member('L', "././@LongLink", name, 255);
    member('0', "cut", "x", 1);
    member('0', "b.jpg", "x", 1); /* has its own name again */
    pax('g', "path", "global.jpg");
    pax('x', "path", name);
    member('0', "cut", "y", 1);
    pax('x', "mtime", "1.5");
    member('0', "c.jpg", "y", 1);
    snprintf(want, sizeof want, "%s@2560+1\nb.jpg@3584+1\n%s@6656+1\nc.jpg@8704+1\n", name, name);
    accepted(want);

    memset(name, 'x', 96); /* a name of exactly 100 bytes has no zero behind it */
    strcpy(name + 96, ".jpg");
    member('0', name, "x", 1);
    snprintf(want, sizeof want, "%s@512+1\n", name);
    accepted(want);

    pax('x', "path", "new\nline.jpg"); /* a name like others: index files refuse it */
    member('0', "cut", "y", 1);
    accepted("new\nline.jpg@1536+1\n");
    pax('x', "path", "");
    member('0', "cut", "y", 1);
    refused("path is empty", 512);
    member('x', "p", "10 path=\0\n", 10);
    member('0', "cut", "y", 1);
    refused("zero byte", 512);
    member('L', "././@LongLink", "", 0);
    member('0', "cut", "y", 1);
    refused("long name", 512);
}

static void test_sizes(void)
{
    uint8_t *h = member('0', "a.jpg", "x", 1);
    memset(h + 124, 0, 12);
    h[124] = 0x80;
    h[135] = 1;
    seal(h);
    h = member('0', "b.jpg", "xy", 2);
    memcpy(h + 124, "  2         ", 12);
    seal(h);
    pax('x', "size", "3");
    h = member('0', "c.jpg", "xyz", 3);
    memcpy(h + 124, "00000000000", 11);
    seal(h);
    member('0', "d.jpg", "x", 1); /* has its own size again */
    accepted("a.jpg@512+1\nb.jpg@1536+2\nc.jpg@3584+3\nd.jpg@4608+1\n");

    static const char *const bad[] = {"00000000009", "000000000x0", "0000000-001", "7777777777777"};
    for (int i = 0; i < COUNT(bad); i++) {
        member('0', "a.jpg", "x", 1);
        h = member('0', "b.jpg", "x", 1);
        memcpy(h + 124, bad[i], 12);
        seal(h);
        refused(i < 3 ? "no number" : "beyond the file's end at 2048", 1024);
    }
    h = member('0', "a.jpg", "x", 1); /* 2^95, and 2^64 - 1 */
    memset(h + 124, 0xff, 12);
    h[124] = 0x80;
    seal(h);
    refused("no number", 0);
    h = member('0', "a.jpg", "x", 1);
    memset(h + 124, 0, 12);
    memset(h + 128, 0xff, 8);
    h[124] = 0x80;
    seal(h);
    refused("18446744073709551615 bytes reaches beyond", 0);
    h = member('0', "a.jpg", "x", 1); /* 2^64 */
    memset(h + 124, 0, 12);
    h[124] = 0x80;
    h[127] = 1;
    seal(h);
    refused("no number", 0);
    h = member('0', "a.jpg", "x", 1); /* negative */
    memset(h + 124, 0xff, 12);
    seal(h);
    refused("no number", 0);

    static const char *const pax_bad[] = {"-1", "", "1x", "18446744073709551616", "0x10"};
    for (int i = 0; i < COUNT(pax_bad); i++) {
        pax('x', "size", pax_bad[i]);
        member('0', "a.jpg", "x", 1);
        refused("size is no number", 512);
    }
    pax('x', "size", "9223372036854775807");
    member('0', "a.jpg", "x", 1);
    refused("9223372036854775807 bytes reaches beyond", 1024);
}

static void test_damage(void)
{
    member('0', "a.jpg", "x", 1);
    uint8_t *h = member('0', "b.jpg", "x", 1);
    h[0] ^= 1;
    refused("checksum", 1024);
    h = member('0', "\351.jpg", "x", 1); /* summed as signed bytes, as some old programs did */
    int sum = 0;
    memset(h + 148, ' ', 8);
    for (int i = 0; i < 512; i++)
        sum += (int8_t)h[i];
    snprintf((char *)h + 148, 8, "%06o", sum);
    accepted("\351.jpg@512+1\n");
    for (size_t cut = 1; cut < 512; cut += 73) {
        member('0', "a.jpg", "x", 1);
        member('0', "b.jpg", "x", 1);
        tar_n = 1024 + cut;
        refused("middle of a header", 1024);
    }
    member('0', "a.jpg", zeros, 2000);
    member('0', "b.jpg", zeros, 2000);
    tar_n -= 49; /* its last byte */
    refused("2000 bytes reaches beyond the file's end at 5071", 2560);
    tar_n = 130; /* of a Git LFS pointer */
    memcpy(tar, "version https://git-lfs.github.com/spec/v1\n", 43);
    refused("git lfs pull", 0);
    memset(tar, 'x', tar_n = 2048);
    refused("not the header of a tar file", 0);
    memcpy(tar, "\x1f\x8b\x08", 3);
    tar_n = 2048;
    refused("gzip", -1);
    tar_n = 0;
    refused("empty", -1);
    member('S', "a.jpg", "x", 1);
    refused("sparse", 0);
    pax('x', "GNU.sparse.major", "1");
    member('0', "a.jpg", "x", 1);
    refused("sparse", 1024);
    pax('x', "path", "a.jpg");
    refused("without its member", 0);
    pax('x', "path", "a.jpg");
    end();
    refused("without its member", 0);

    static const char *const records[] = {
        "x",          "11 path=a\n",  "999999 path=a.jpg\n", "3 \n",
        "0 path=a\n", "11 path=a.jp", "8 pathab\n",          "99999999999999999999 path=a.jpg\n"};
    for (int i = 0; i < COUNT(records); i++) {
        member('x', "p", records[i], strlen(records[i]));
        member('0', "a.jpg", "x", 1);
        refused("pax header", 512);
    }
    h = member('x', "p", zeros, 1024); /* more than is ever read, in a file that is large enough */
    memcpy(h + 124, "00040000000", 11);
    seal(h);
    const char *path = write_bytes("big.tar", tar, tar_n);
    CHECK(truncate(path, 1 << 24) == 0);
    CHECK(!tar_read(path, list_member, NULL, NULL, &why) && strstr(why.what, "megabyte"), "%s",
          why.what);
    tar_n = 0;
    CHECK(!tar_read(dir, list_member, NULL, NULL, &why) && strstr(why.what, "not a regular file"));
    CHECK(!tar_read(in_dir("none.tar"), list_member, NULL, NULL, &why) &&
          strstr(why.what, "none.tar"));
}

/* Every cut and, at each byte of two headers, a few other values: never a crash, never a member
 * that is not inside the file. */
static bool inside(void *ctx, const TarMember *m, Error *e)
{
    (void)e;
    CHECK(m->offset + m->size <= *(size_t *)ctx);
    return true;
}

static void test_changed_bytes(void)
{
    pax('x', "size", "5");
    member('0', "a.jpg", "12345", 5);
    member('L', "././@LongLink", "b.jpg", 6);
    member('0', "cut", "12345", 5);
    end();
    size_t n = tar_n;
    static const uint8_t values[] = {0, '0', '9', 'x', 0x80, 0xff};
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < COUNT(values); k += i % 512 < 160 ? 1 : 3) {
            size_t header = i / 512 * 512;
            uint8_t old[512];
            memcpy(old, tar + header, 512);
            tar[i] = values[k];
            if (memcmp(tar + header + 257, "ustar", 5) == 0)
                seal(tar + header);
            tar_read(write_bytes("c.tar", tar, n), inside, &n, NULL, &why);
            memcpy(tar + header, old, 512);
        }
    for (size_t cut = 0; cut < n; cut += 97)
        tar_read(write_bytes("c.tar", tar, cut), inside, &cut, NULL, &why);
    tar_n = 0;
}

/* ---- index files ---- */

static bool list_sample(void *ctx, long sample, const IndexPart *parts, int n, Error *e)
{
    (void)e;
    char *text = ctx;
    snprintf(text + strlen(text), 8192 - strlen(text), "%ld", sample);
    for (int i = 0; i < n; i++)
        snprintf(text + strlen(text), 8192 - strlen(text), " %s/%d/%d/%s", parts[i].ext,
                 (int)parts[i].offset, (int)parts[i].size, parts[i].name);
    strcat(text, "\n");
    return true;
}

static const char *indexed(const char *bytes)
{
    static char text[8192];
    const char *path = write_bytes("idx.txt", bytes, strlen(bytes));
    text[0] = 0;
    why = (Error){"", ""};
    bool ok = index_read(path, list_sample, text, &why);
    CHECK(ok || (strstr(why.what, path) && *why.hint), "'%s'", why.what);
    return ok ? text : why.what;
}

static void test_index_read(void)
{
    const char *got = indexed("v1.2 2\ncls 512 1 a.cls jpg 1536 9 a.jpg\ncls 2560 0 b.cls\n");
    CHECK(strcmp(got, "0 cls/512/1/a.cls jpg/1536/9/a.jpg\n1 cls/2560/0/b.cls\n") == 0, "%s", got);
    got = indexed("v1.1 1\ncls 512 1 jpg 1536 9"); /* no end of line */
    CHECK(strcmp(got, "0 cls/512/1/ jpg/1536/9/\n") == 0, "%s", got);
    got = indexed("v1.2 1\r\ncls 512 1 a.cls\r\n");
    CHECK(strcmp(got, "0 cls/512/1/a.cls\n") == 0, "%s", got);
    static const char *const bad[][2] = {
        {"", ":1:"},
        {"\n", ":1:"},
        {"v1.3 1\ncls 512 1 a.cls\n", "version"},
        {"v1.2\ncls 512 1 a.cls\n", "number of samples"},
        {"v1.2 x\ncls 512 1 a.cls\n", "number of samples"},
        {"v1.2 1 1\ncls 512 1 a.cls\n", "number of samples"},
        {"v1.2 -1\ncls 512 1 a.cls\n", "number of samples"},
        {"v1.2 0\n", "no samples"},
        {"v1.2 2\ncls 512 1 a.cls\n", "1 samples, but its first line says 2"},
        {"v1.2 1\ncls 512 1 a.cls\ncls 512 1 b.cls\n", ":3: more samples"},
        {"v1.2 1\ncls 513 1 a.cls\n", ":2: an offset"},
        {"v1.2 1\ncls 0 1 a.cls\n", ":2: an offset"},
        {"v1.2 1\ncls x 1 a.cls\n", "no number"},
        {"v1.2 1\ncls 512 -1 a.cls\n", "no number"},
        {"v1.2 1\ncls 512 18446744073709551617 a.cls\n", "no number"},
        {"v1.2 1\ncls 512 1\n", "within a component"},
        {"v1.2 1\ncls 512 1 a.cls jpg\n", "within a component"},
        {"v1.1 1\ncls 512\n", "within a component"},
        {"v1.2 2\n\ncls 512 1 a.cls\n", ":2: a sample without"},
        {"v1.2 99999999999\ncls 512 1 a.cls\n", "first line says 99999999999"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        got = indexed(bad[i][0]);
        CHECK(strstr(got, bad[i][1]) != NULL, "case %d: '%s' lacks '%s'", i, got, bad[i][1]);
    }
    CHECK(!index_read(write_bytes("idx.txt", "v1.2 1\ncls\0 512 1 a\n", 20), list_sample, NULL,
                      &why));
    CHECK(!index_read(in_dir("none.txt"), list_sample, NULL, &why));
}

static void test_index_write(void)
{
    long n = -1;
    member('0', "0000001.cls", "7", 1);
    member('0', "0000001.jpg", "jpegjpeg", 8);
    member('0', "0000001.seg.png", "jpegjpeg", 8);
    member('5', "dir/", "", 0);
    member('0', "dir/0000001.cls", "17", 2);
    member('0', "00000012.cls", "17", 2);
    member('0', "0000001.cls", "7",
           1); /* not next to the others of its name: a sample of its own */
    end();
    const char *path = write_bytes("i.tar", tar, tar_n), *index = in_dir("idx_0.txt");
    CHECK(index_write(path, index, &n, &why) && n == 4, "%ld: %s", n, why.what);
    char *text = read_text(index, 1 << 20, &why);
    const char *want =
        "v1.2 4\n"
        "cls 512 1 0000001.cls jpg 1536 8 0000001.jpg seg.png 2560 8 0000001.seg.png\n"
        "cls 4096 2 dir/0000001.cls\n"
        "cls 5120 2 00000012.cls\n"
        "cls 6144 1 0000001.cls\n";
    CHECK(text && strcmp(text, want) == 0, "%s", text);
    free(text);
    char back[8192] = "";
    CHECK(index_read(index, list_sample, back, &why) && strstr(back, "3 cls/6144/1/0000001.cls\n"));
    tar_n = 0;

    static const char *const blank[] = {"a b.jpg", "a\nb.jpg", "a.jp\tg"};
    for (int i = 0; i < COUNT(blank); i++) {
        member('0', blank[i], "7", 1);
        CHECK(!index_write(write_bytes("i.tar", tar, tar_n), index, NULL, &why));
        CHECK(strstr(why.what, "white space") != NULL, "%s", why.what);
        tar_n = 0;
    }
    end();
    CHECK(!index_write(write_bytes("i.tar", tar, tar_n), index, NULL, &why));
    CHECK(strstr(why.what, "no samples") != NULL, "%s", why.what);
    tar_n = 0;
}

/* ---- writing ---- */

static void test_write(void)
{
    char text[8192] = "", long_name[200], longer[130];
    memset(long_name, 'd', 120);
    strcpy(long_name + 120, "/b.jpg");
    memset(longer, 'e', 120);
    strcpy(longer + 120, ".jpg");
    TarWriter *w = tar_create(in_dir("w.tar"), &why);
    if (!CHECK(w, "%s", why.what))
        return;
    static uint8_t big[200000];
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (uint8_t)(i * 7);
    CHECK(tar_add(w, "a.cls", "12", 2, &why) && tar_bytes(w) == 1024);
    CHECK(tar_add(w, "a.jpg", big, sizeof big, &why) && tar_bytes(w) == 1024 + 512 + 200192);
    CHECK(tar_add(w, "e.jpg", big, 0, &why) && tar_add(w, "f.jpg", big, 512, &why));
    CHECK(tar_add(w, long_name, big, 1, &why));
    CHECK(!tar_add(w, longer, big, 1, &why) && strstr(why.what, "no name for a member"));
    CHECK(!path_exists(in_dir("w.tar")));
    CHECK(tar_close(w, &why), "%s", why.what);
    CHECK(tar_read(in_dir("w.tar"), list_member, text, NULL, &why), "%s", why.what);
    char want[1024];
    snprintf(want, sizeof want,
             "a.cls@512+2\na.jpg@1536+200000\ne.jpg@202240+0\nf.jpg@202752+512\n%s@203776+1\n",
             long_name);
    CHECK(strcmp(text, want) == 0, "'%s'", text);
    FILE *f = fopen(in_dir("w.tar"), "rb");
    static uint8_t back[sizeof big];
    CHECK(f && fseek(f, 1536, SEEK_SET) == 0 && fread(back, 1, sizeof back, f) == sizeof back);
    CHECK(memcmp(back, big, sizeof big) == 0);
    if (f)
        fclose(f);
    /* GNU tar reads it too */
    char command[600];
    snprintf(command, sizeof command,
             "cd %s && tar tf w.tar >list 2>err && ! grep . err >&2 && "
             "test $(wc -l <list) = 5 && tar xOf w.tar a.cls | grep -qx 12",
             dir);
    if (system("tar --version >/dev/null 2>&1") == 0)
        CHECK(system(command) == 0);
    else
        SKIP("no tar program");

    w = tar_create(in_dir("x.tar"), &why);
    CHECK(w && tar_add(w, "a.jpg", big, sizeof big, &why));
    tar_abandon(w);
    CHECK(!tar_create(in_dir("none/x.tar"), &why) && strstr(why.what, "none/x.tar"));
    /* a full disk: nothing is left behind */
    struct rlimit old, small = {100000, 100000};
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    w = tar_create(in_dir("x.tar"), &why);
    CHECK(w && (!tar_add(w, "a.jpg", big, sizeof big, &why)) && strstr(why.what, "x.tar"));
    tar_abandon(w);
    w = tar_create(in_dir("x.tar"), &why);
    CHECK(w && tar_add(w, "a.jpg", big, 40000, &why) && tar_add(w, "b.jpg", big, 60000, &why));
    CHECK(!tar_close(w, &why) && strstr(why.what, "cannot write"), "%s", why.what);
    setrlimit(RLIMIT_FSIZE, &old);
    snprintf(command, sizeof command, "! ls %s/x.tar* >/dev/null 2>&1", dir);
    CHECK(system(command) == 0);
}

int main(void)
{
    if (!mkdtemp(dir))
        die("see whether /tmp can be written to", "%s: cannot create", dir);
    test_braces();
    test_members();
    test_rest();
    test_names();
    test_sizes();
    test_damage();
    test_changed_bytes();
    test_index_read();
    test_index_write();
    test_write();
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
    return check_report();
}
