/* kv: a key-value store that takes commands on standard input, and whose only storage is its own memory.
 *
 *     set KEY VALUE   -> ok                    (the value is the rest of the line)
 *     get KEY         -> value VALUE, or none
 *     del KEY         -> deleted, or none
 *     count           -> count N
 *     keys            -> keys N, then the N keys in byte order, one a line
 *     quit            -> bye                   (the end of the input ends it too, silently)
 *
 * Every line of input gets exactly one answer; what it cannot understand gets one that starts with "error".
 *
 *     kv MIB HOT_MIB [OPERATIONS [REPORT_EVERY]]      OPERATIONS 0, the default: for ever
 *
 * It is its own client: it stores MIB of values, then gets values of the first HOT_MIB, in random order, checks each,
 * and sets one in eight anew.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "prng.h"

enum { MAX_LINE = 65536, FIRST_BUCKETS = 64 };

struct entry {
    struct entry *next;
    char *key;
    char *value;
};

/* A hash table with chains; it doubles when there is more than one entry a bucket. */
static struct entry **buckets;
static size_t bucket_count, entry_count;

static enum { LINE, LINE_TOO_LONG, LINE_WITH_NUL, END_OF_INPUT } read_line(char *line)
{
    size_t length = 0;
    bool nul = false;
    int c;
    while ((c = getchar()) != EOF && c != '\n') {
        nul |= c == '\0';
        if (length < MAX_LINE)
            line[length] = (char)c;
        length++;
    }
    if (c == EOF && length == 0)
        return END_OF_INPUT;
    if (length >= MAX_LINE)
        return LINE_TOO_LONG;
    line[length] = '\0';
    return nul ? LINE_WITH_NUL : LINE;
}

static size_t bucket_of(const char *key)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *key != '\0'; key++)
        hash = (hash ^ (unsigned char)*key) * 0x100000001b3u;
    return hash % bucket_count;
}

/* The link that points to the key's entry, or to NULL where it would be added. */
static struct entry **find(const char *key)
{
    struct entry **link = &buckets[bucket_of(key)];
    while (*link != NULL && strcmp((*link)->key, key) != 0)
        link = &(*link)->next;
    return link;
}

/* If there is no memory for a larger table the old one stays, and is only slower. */
static void grow(void)
{
    struct entry **old = buckets;
    size_t old_count = bucket_count;
    struct entry **larger = calloc(2 * old_count, sizeof *larger);
    if (larger == NULL)
        return;
    buckets = larger;
    bucket_count = 2 * old_count;
    for (size_t i = 0; i < old_count; i++) {
        while (old[i] != NULL) {
            struct entry *entry = old[i];
            old[i] = entry->next;
            size_t home = bucket_of(entry->key);
            entry->next = buckets[home];
            buckets[home] = entry;
        }
    }
    free(old);
}

static bool set(const char *key, const char *value)
{
    char *copy = strdup(value);
    if (copy == NULL)
        return false;
    struct entry **link = find(key);
    if (*link != NULL) {
        free((*link)->value);
        (*link)->value = copy;
        return true;
    }
    struct entry *entry = malloc(sizeof *entry);
    char *name = strdup(key);
    if (entry == NULL || name == NULL) {
        free(entry);
        free(name);
        free(copy);
        return false;
    }
    *entry = (struct entry){.next = NULL, .key = name, .value = copy};
    *link = entry;
    if (++entry_count > bucket_count)
        grow();
    return true;
}

static bool delete(const char *key)
{
    struct entry **link = find(key);
    struct entry *entry = *link;
    if (entry == NULL)
        return false;
    *link = entry->next;
    free(entry->key);
    free(entry->value);
    free(entry);
    entry_count--;
    return true;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void print_keys(void)
{
    char **keys = malloc((entry_count + 1) * sizeof *keys);
    if (keys == NULL) {
        puts("error: out of memory");
        return;
    }
    size_t n = 0;
    for (size_t i = 0; i < bucket_count; i++)
        for (struct entry *entry = buckets[i]; entry != NULL; entry = entry->next)
            keys[n++] = entry->key;
    qsort(keys, n, sizeof *keys, by_bytes);
    printf("keys %zu\n", n);
    for (size_t i = 0; i < n; i++)
        puts(keys[i]);
    free(keys);
}

/* Answers one line; false if it was "quit". */
static bool answer(char *line)
{
    char *rest = line;
    char *command = strsep(&rest, " ");
    if (strcmp(command, "set") == 0) {
        char *key = strsep(&rest, " ");
        if (key == NULL || *key == '\0' || rest == NULL)
            puts("error: set needs a key and a value");
        else
            puts(set(key, rest) ? "ok" : "error: out of memory");
    } else if (strcmp(command, "get") == 0 || strcmp(command, "del") == 0) {
        if (rest == NULL || *rest == '\0' || strchr(rest, ' ') != NULL)
            printf("error: %s needs one key\n", command);
        else if (*command == 'd')
            puts(delete(rest) ? "deleted" : "none");
        else if (*find(rest) == NULL)
            puts("none");
        else
            printf("value %s\n", (*find(rest))->value);
    } else if (rest != NULL) {
        puts("error: no such command, or one that takes no argument");
    } else if (strcmp(command, "count") == 0) {
        printf("count %zu\n", entry_count);
    } else if (strcmp(command, "keys") == 0) {
        print_keys();
    } else if (strcmp(command, "quit") == 0) {
        puts("bye");
        return false;
    } else {
        puts("error: no such command");
    }
    return true;
}

/* The value of a key's n-th version: 1,023 letters, the first eight of which say the version. */
enum { VALUE_SIZE = 1024, VERSION_SIZE = 8, VALUES_PER_MIB = 1024 };

static void make_value(char *value, uint64_t number, uint64_t version)
{
    uint64_t state = mix64(number) + version;
    for (int i = 0; i < VERSION_SIZE; i++)
        value[i] = (char)('a' + (version >> (4 * i) & 15));
    for (int i = VERSION_SIZE; i < VALUE_SIZE; i += 16) {
        uint64_t letters = next_random(&state);
        for (int j = i; j < i + 16 && j < VALUE_SIZE; j++, letters >>= 4)
            value[j] = (char)('a' + (letters & 15));
    }
    value[VALUE_SIZE - 1] = '\0';
}

static uint64_t version_of(const char *value)
{
    uint64_t version = 0;
    for (int i = 0; i < VERSION_SIZE; i++)
        version |= (uint64_t)(value[i] - 'a') << (4 * i);
    return version;
}

static int serve_itself(uint64_t values, uint64_t hot, long operations, long report_every)
{
    char key[32], expected[VALUE_SIZE];
    for (uint64_t number = 0; number < values; number++) {
        snprintf(key, sizeof key, "key %llu", (unsigned long long)number);
        make_value(expected, number, 0);
        if (!set(key, expected)) {
            puts("error: out of memory");
            return 1;
        }
    }
    printf("%zu values\n", entry_count);
    uint64_t state = 1, versions = 0;
    for (long operation = 1; operations == 0 || operation <= operations; operation++) {
        uint64_t choice = next_random(&state);
        uint64_t number = ((choice >> 32) * hot) >> 32;
        snprintf(key, sizeof key, "key %llu", (unsigned long long)number);
        const char *value = (*find(key))->value;
        uint64_t version = version_of(value);
        make_value(expected, number, version);
        if (strcmp(value, expected) != 0) {
            printf("error: the value of %s is wrong: %s\n", key, value);
            return 1;
        }
        versions += version;
        if (choice % 8 == 0) {
            make_value(expected, number, version + 1);
            set(key, expected);
        }
        if (operation % report_every == 0)
            printf("operation %ld versions %llu\n", operation, (unsigned long long)versions);
    }
    return 0;
}

int main(int argc, char **argv)
{
    static char line[MAX_LINE];
    bucket_count = FIRST_BUCKETS;
    buckets = calloc(bucket_count, sizeof *buckets);
    if (buckets == NULL) {
        fputs("kv: out of memory\n", stderr);
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1) {
        long mib = number_argument(argc, argv, 1, 1, 1, 1 << 16);
        long hot_mib = number_argument(argc, argv, 2, mib, 1, mib);
        long operations = number_argument(argc, argv, 3, 0, 0, 1000000000000);
        long report_every = number_argument(argc, argv, 4, 100000, 1, 1000000000000);
        return serve_itself((uint64_t)(mib * VALUES_PER_MIB), (uint64_t)(hot_mib * VALUES_PER_MIB), operations,
                            report_every);
    }
    for (;;) {
        switch (read_line(line)) {
        case END_OF_INPUT:
            return 0;
        case LINE_TOO_LONG:
            printf("error: the line is longer than %d bytes\n", MAX_LINE - 1);
            break;
        case LINE_WITH_NUL:
            puts("error: the line has a zero byte in it");
            break;
        case LINE:
            if (!answer(line))
                return 0;
        }
    }
}
