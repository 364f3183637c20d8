/* walk: a random walk over a large linked graph, the worst that can happen to a cache or to a lazy restore.
 *
 *     walk [MIB [STEPS [REPORT_EVERY [HOT_MIB]]]]      STEPS 0: for ever
 *
 * With HOT_MIB, no way leads out of the first part of the graph, which is so large, nor from the rest into it.
 * Each node is one cache line with four ways out and a count of visits; its own generator chooses the way, so
 * the same arguments give the same walk everywhere.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "args.h"
#include "prng.h"

struct node {
    struct node *ways[4];
    uint64_t visits;
    uint64_t label;
    uint64_t unused[2];
};
_Static_assert(sizeof(struct node) == 64, "a node is one cache line");

/* The first ways together are one ring through every node, so that no part of a graph is a trap; the other three
 * lead anywhere in it. */
static void link_graph(struct node *nodes, uint64_t count, uint64_t state)
{
    for (uint64_t i = 0; i < count; i++) {
        nodes[i].ways[0] = &nodes[(i + 1) % count];
        for (int way = 1; way < 4; way++)
            nodes[i].ways[way] = &nodes[random_below(&state, count)];
        nodes[i].label = next_random(&state);
    }
}

int main(int argc, char **argv)
{
    long mib = number_argument(argc, argv, 1, 64, 1, 1 << 16);
    long steps = number_argument(argc, argv, 2, 10000000, 0, 1000000000000);
    long report_every = number_argument(argc, argv, 3, 1000000, 1, 1000000000000);
    long hot_mib = number_argument(argc, argv, 4, mib, 1, mib);
    setvbuf(stdout, NULL, _IOLBF, 0);
    uint64_t count = ((uint64_t)mib << 20) / sizeof(struct node);
    uint64_t hot = ((uint64_t)hot_mib << 20) / sizeof(struct node);
    struct node *nodes = mmap(NULL, (size_t)mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (nodes == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    link_graph(nodes, hot, 1);
    link_graph(nodes + hot, count - hot, 3);
    printf("%llu nodes\n", (unsigned long long)count);
    uint64_t state = 2, checksum = 0;
    struct node *here = nodes;
    for (long step = 1; steps == 0 || step <= steps; step++) {
        here = here->ways[next_random(&state) >> 62];
        here->visits++;
        checksum = mix64(checksum + here->label + here->visits);
        if (step % report_every == 0)
            printf("step %ld node %td checksum %016llx\n", step, here - nodes, (unsigned long long)checksum);
    }
    uint64_t visits = 0;
    for (uint64_t i = 0; i < count; i++)
        visits += nodes[i].visits;
    printf("visits %llu checksum %016llx\n", (unsigned long long)visits, (unsigned long long)checksum);
    return visits == (uint64_t)steps ? 0 : 1;
}
