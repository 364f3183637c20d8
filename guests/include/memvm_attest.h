/* memvm's calls by which a guest is attested: it gives a public key, and reads the token that a verifier issued for it.
 * Elsewhere they fail with ENOSYS.
 *
 * The key is part of the evidence, and in the token as `cnf`: who reads the token and sends something to that key knows
 * that only this guest, launched and configured as the token says, can read it. Neither key nor token is in a checkpoint:
 * a restored guest makes another key, and is attested anew (memvm_generation in memvm.h tells that it was restored).
 */
#ifndef GUESTS_MEMVM_ATTEST_H
#define GUESTS_MEMVM_ATTEST_H

#include <stddef.h>
#include <unistd.h>

enum {
    MEMVM_CALL_BIND_KEY = 0x6d760002,
    MEMVM_CALL_TOKEN = 0x6d760003,
    MEMVM_CALL_BIND_DATA = 0x6d760004,
    MEMVM_CALL_WIPE_WITH_TOKENS = 0x6d760005
};
enum { MEMVM_DATA_SIZE = 48 };
enum { MEMVM_KEY_ED25519 = 1, MEMVM_KEY_X25519 = 2, MEMVM_KEY_SIZE = 32 };

/* Have tokens from now on say that this is the guest's public key. Returns 0, or -1 with errno: EINVAL for a kind that
 * is not known. A token that there was is forgotten. */
static inline int memvm_bind_key(int kind, const unsigned char key[MEMVM_KEY_SIZE])
{
    return (int)syscall(MEMVM_CALL_BIND_KEY, kind, key);
}

/* Have this memory wiped when the tokens are revoked, because a setting was changed that was launched with `revoke`: where
 * the private key is, and what else only a guest may have that can be believed. Up to 16 pieces of 64 KiB, wiped in the order
 * in which they were named, before the change is answered; then they are named no more, nor are they in a restored guest,
 * which names them anew. To name a piece again changes nothing.
 *
 * Until then it is locked: what is stored there from now on is not written to swap (mlock(2) by memvm, whose user's limit,
 * ulimit -l, has to allow it; whoever runs the guest is told if it does not), and neither memvm nor the guest leaves a core
 * dump. What is not promised: that nobody reads it there, which is what a sealed guest is for; that copies stay out of swap:
 * registers, what the guest has elsewhere, its stack included, and what memvm has on its way into a checkpoint or to a disk;
 * and what is stored there after the guest has unmapped it, or thrown it away, and has it anew. A checkpoint has what is
 * there, and is encrypted if the guest is sealed.
 *
 * Returns 0, or -1 with errno: EFAULT for memory that the guest cannot write, EINVAL for a size that is 0 or too large,
 * ENOSPC for too many pieces. */
static inline int memvm_wipe_with_tokens(void *memory, size_t size)
{
    return (int)syscall(MEMVM_CALL_WIPE_WITH_TOKENS, memory, size);
}

/* Have tokens from now on say this, too: a digest, for whoever wants to see that the guest meant the token for one thing.
 * Returns 0, or -1 with errno. A token that there was is forgotten. */
static inline int memvm_bind_data(const unsigned char data[MEMVM_DATA_SIZE])
{
    return (int)syscall(MEMVM_CALL_BIND_DATA, data, (size_t)MEMVM_DATA_SIZE);
}

/* Copy the token to a buffer, without a NUL. Where memvm was told of a verifier (memvm run --verifier URL) and there is no
 * token yet, the guest is attested, and waits for that. Returns the length; -1 with errno: ENODATA if there is no token
 * (`memvm attest` gets one, too), ERANGE if the buffer is too small: 16 KiB are enough. */
static inline long memvm_token(char *buffer, size_t size)
{
    return syscall(MEMVM_CALL_TOKEN, buffer, size);
}

#endif
