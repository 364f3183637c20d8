/* Tells what a program finds on its stack at its start: arguments, environment (in hexadecimal), auxiliary vector. */
#include "show.h"
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>

extern char **environ;
extern char __ehdr_start;

static void hex(const char *name, const char *text)
{
    printf("%s ", name);
    for (; *text; text++)
        printf("%02x", (unsigned char)*text);
    printf("\n");
}

int main(int argc, char **argv)
{
    printf("argc %d\n", argc);
    for (int i = 0; i < argc; i++)
        hex("arg", argv[i]);
    CHECK(argv[argc] == NULL && environ == argv + argc + 1);
    for (char **variable = environ; *variable; variable++)
        hex("env", *variable);
    hex("execfn", (char *)getauxval(AT_EXECFN));
    hex("platform", (char *)getauxval(AT_PLATFORM));
    char **end = environ;
    while (*end)
        end++;
    ElfW(auxv_t) *vector = (ElfW(auxv_t) *)(end + 1);
    for (; vector->a_type != AT_NULL; vector++)
        if (vector->a_type != AT_RANDOM && vector->a_type != AT_EXECFN && vector->a_type != AT_PLATFORM)
            printf("aux %lu %lu\n", vector->a_type, vector->a_un.a_val);
    CHECK((unsigned long)(argv - 1) % 16 == 0); /* where argc is: the stack pointer at the start */
    ElfW(Ehdr) *header = (ElfW(Ehdr) *)&__ehdr_start;
    CHECK(getauxval(AT_PHDR) == (unsigned long)header + header->e_phoff);
    CHECK(getauxval(AT_PHNUM) == header->e_phnum && getauxval(AT_PHENT) == header->e_phentsize);
    CHECK(!memcmp((void *)getauxval(AT_SYSINFO_EHDR), "\177ELF", 4));
    hex("random", (char[33]){0});
    unsigned char *bytes = (unsigned char *)getauxval(AT_RANDOM);
    for (int i = 0; i < 16; i++)
        printf("%02x", bytes[i]);
    printf("\n");
    return 0;
}
