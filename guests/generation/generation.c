/* generation: draws a name at random, and must not share it with a clone of itself.
 *
 *     generation [MS]
 *
 * It prints its name, then looks every MS milliseconds (10) whether it was brought back; when it was, it draws another
 * name, and says which clone it is. With MS = 0 it looks for each line on standard input, and ends with the input.
 * Where there is no memvm it says so, and keeps its name.
 */
#include "args.h"
#include "memvm.h"

#include <errno.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

static uint64_t draw(void)
{
    uint64_t name;
    if (getrandom(&name, sizeof name, 0) != sizeof name) {
        perror("getrandom");
        exit(1);
    }
    return name;
}

static int look_again(long ms)
{
    if (ms > 0) {
        struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
        nanosleep(&pause, NULL);
        return 1;
    }
    int c;
    while ((c = getchar()) != '\n' && c != EOF)
        continue;
    return c != EOF;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    long ms = number_argument(argc, argv, 1, 10, 0, 60000);
    struct memvm_generation generation;
    int contained = memvm_generation(&generation) == 0;
    if (!contained && errno != ENOSYS) {
        perror("memvm_generation");
        return 1;
    }
    printf("%s: my name is %016llx\n", contained ? "a guest" : "no guest", (unsigned long long)draw());
    while (look_again(ms)) {
        if (!contained || !memvm_generation_changed(&generation))
            continue;
        if (memvm_generation(&generation) != 0) {
            perror("memvm_generation");
            return 1;
        }
        printf("restore %llu, clone %u of %u: my name is %016llx\n", (unsigned long long)generation.restores,
               generation.clone, generation.clones, (unsigned long long)draw());
    }
    return 0;
}
