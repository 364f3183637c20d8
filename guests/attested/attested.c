/* attested: gives memvm a public key, and prints the token that a verifier issued for it.
 *
 *     attested
 *
 * The key is made of fixed bytes here, private and public: a program in earnest draws one. For each line on standard input
 * it prints the token that it has, or "no token". Where there is no memvm it says so.
 */
#include "memvm_attest.h"

#include <errno.h>
#include <stdio.h>

static volatile unsigned char private_key[MEMVM_KEY_SIZE];

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsigned char key[MEMVM_KEY_SIZE];
    for (int i = 0; i < MEMVM_KEY_SIZE; i++)
        private_key[i] = (unsigned char)(i * i + 77);
    for (int i = 0; i < MEMVM_KEY_SIZE; i++)
        key[i] = (unsigned char)(i + 1);
    if (memvm_bind_key(MEMVM_KEY_X25519, key) != 0) {
        if (errno != ENOSYS) {
            perror("memvm_bind_key");
            return 1;
        }
        printf("no guest\n");
        return 0;
    }
    if (memvm_wipe_with_tokens((void *)private_key, sizeof private_key) != 0) {
        perror("memvm_wipe_with_tokens");
        return 1;
    }
    printf("a guest\n");
    static char token[16384];
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n')
            continue;
        long length = memvm_token(token, sizeof token);
        if (length < 0 && errno != ENODATA) {
            perror("memvm_token");
            return 1;
        }
        printf("%.*s\n", length < 0 ? 8 : (int)length, length < 0 ? "no token" : token);
    }
    return 0;
}
