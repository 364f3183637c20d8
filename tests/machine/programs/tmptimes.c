/* tmptimes: changes its empty /tmp, waits for a line, and says whether it still is what it was. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void)
{
    struct stat before, after;
    char line[16];
    if (mkdir("/tmp/made", 0700) || rmdir("/tmp/made") || stat("/tmp", &before))
        return 1;
    puts("holding");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin) || stat("/tmp", &after))
        return 2;
    puts(before.st_ino == after.st_ino && before.st_mode == after.st_mode &&
                 !memcmp(&before.st_mtim, &after.st_mtim, sizeof before.st_mtim) ? "as it was" : "another one");
    return 0;
}
