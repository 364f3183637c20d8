/* openfile: tries to open a file, to make one, to make a directory and to open a directory. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errno_name.h"

static void report(const char *what, int result)
{
    if (result < 0)
        printf("%s: refused: %s\n", what, errno_name(errno));
    else
        printf("%s: done\n", what);
}

int main(void)
{
    report("open /etc/passwd", open("/etc/passwd", O_RDONLY));
    report("open /", open("/", O_RDONLY | O_DIRECTORY));
    report("make a file", open("made-by-openfile", O_WRONLY | O_CREAT | O_EXCL, 0600));
    report("remove it", unlink("made-by-openfile"));
    report("make a directory", mkdir("made-by-openfile", 0700));
    report("remove it", rmdir("made-by-openfile"));
    return 0;
}
