/* How a guest gets the key of a disk from a key broker (memvm run --broker URL --verifier URL). With nettle and hogweed.
 *
 * The guest makes a key pair, has it attested together with what the broker said and which disk it is about, and gets the
 * disk's key, encrypted for that key pair and signed by the broker. The manager carries all of it and can neither read nor
 * change it. The broker's public key has to be part of what was measured: an argument of the program, for one.
 */
#ifndef GUESTS_MEMVM_BROKER_H
#define GUESTS_MEMVM_BROKER_H

#include "hpke.h"
#include "memvm_attest.h"
#include "memvm_disk.h"

#include <errno.h>
#include <nettle/eddsa.h>
#include <nettle/sha2.h>
#include <stdlib.h>
#include <sys/random.h>

enum { MEMVM_CALL_BROKER_CHALLENGE = 0x6d760018, MEMVM_CALL_BROKER_KEY = 0x6d760019 };
enum { MEMVM_DISK_KEY_SIZE = 64, MEMVM_SEALED_SIZE = 112, MEMVM_SIGNATURE_SIZE = 64, MEMVM_TOKEN_SIZE = 1 << 16 };

#define MEMVM_DISK_KEY_DOMAIN "memvm disk key 1"

struct memvm_broker_challenge {
    unsigned char nonce[32];
    char identity[128]; /* the broker's name, which ends with a NUL */
};

struct memvm_broker_key {
    unsigned char sealed[MEMVM_SEALED_SIZE];
    unsigned char signature[MEMVM_SIGNATURE_SIZE];
};

/* Begins an exchange about a disk. Returns 0, or -1 with errno: ENOTCONN where memvm was told of no broker, EACCES if the
 * broker says no, ENXIO if there is no such disk. */
static inline int memvm_broker_challenge(int disk, struct memvm_broker_challenge *challenge)
{
    return (int)syscall(MEMVM_CALL_BROKER_CHALLENGE, disk, challenge);
}

/* Ends it, with the guest's token. Returns 0, or -1 with errno: ENODATA if the guest has no token, EACCES if the broker says
 * no; why, memvm tells whoever runs the guest. */
static inline int memvm_broker_key(int disk, const unsigned char nonce[32], struct memvm_broker_key *key)
{
    return (int)syscall(MEMVM_CALL_BROKER_KEY, disk, nonce, key);
}

static inline void memvm_hash_field(struct sha384_ctx *hash, const void *data, size_t size)
{
    const unsigned char length[2] = {(unsigned char)(size >> 8), (unsigned char)size};
    sha384_update(hash, sizeof length, length);
    sha384_update(hash, size, data);
}

/* What binds an exchange together: memvm/attest/disk_keys.py. */
static inline void memvm_disk_key_binding(unsigned char out[MEMVM_DATA_SIZE],
                                          const struct memvm_broker_challenge *challenge,
                                          const struct memvm_disk_info *disk, const unsigned char public_key[32])
{
    struct sha384_ctx hash;
    sha384_init(&hash);
    memvm_hash_field(&hash, MEMVM_DISK_KEY_DOMAIN, strlen(MEMVM_DISK_KEY_DOMAIN));
    memvm_hash_field(&hash, challenge->identity, strnlen(challenge->identity, sizeof challenge->identity));
    memvm_hash_field(&hash, challenge->nonce, sizeof challenge->nonce);
    memvm_hash_field(&hash, disk->uuid, strnlen(disk->uuid, sizeof disk->uuid));
    memvm_hash_field(&hash, disk->header_digest, sizeof disk->header_digest);
    memvm_hash_field(&hash, public_key, 32);
    sha384_digest(&hash, MEMVM_DATA_SIZE, out);
}

/* Whether memory was wiped, which somebody else does, at any moment. */
static inline bool memvm_is_wiped(const volatile unsigned char *memory, size_t size)
{
    unsigned char all = 0;
    for (size_t i = 0; i < size; i++)
        all |= memory[i];
    return all == 0;
}

/* Gets the key of a disk from the broker whose public key this is. Returns 0; -1 with errno: as memvm_broker_challenge,
 * memvm_token and memvm_broker_key; EBADMSG if the answer is not from that broker, or not for this exchange; EKEYREVOKED if
 * the guest's tokens were revoked meanwhile. Before, have the memory of `key` wiped with them, and kept out of swap until
 * then: memvm_wipe_with_tokens, which is done here for the private key. For one thread at a time. */
static inline int memvm_get_disk_key(int disk, const unsigned char broker[32], unsigned char key[MEMVM_DISK_KEY_SIZE])
{
    struct memvm_disk_info info;
    struct memvm_broker_challenge challenge;
    if (memvm_disk_info(disk, &info) != 0 || memvm_broker_challenge(disk, &challenge) != 0)
        return -1;
    /* Not on the stack: what is wiped there later might be somebody else's by then. */
    static unsigned char secret_key[32];
    unsigned char public_key[32];
    /* domain, binding and what is sealed: the first two are HPKE's info, and all three are signed */
    unsigned char said[sizeof MEMVM_DISK_KEY_DOMAIN - 1 + MEMVM_DATA_SIZE + MEMVM_SEALED_SIZE];
    const size_t domain_size = sizeof MEMVM_DISK_KEY_DOMAIN - 1, info_size = domain_size + MEMVM_DATA_SIZE;
    if (memvm_wipe_with_tokens(secret_key, sizeof secret_key) != 0 ||
        getrandom(secret_key, sizeof secret_key, 0) != sizeof secret_key)
        return -1;
    curve25519_mul_g(public_key, secret_key);
    memcpy(said, MEMVM_DISK_KEY_DOMAIN, domain_size);
    memvm_disk_key_binding(said + domain_size, &challenge, &info, public_key);
    static char token[MEMVM_TOKEN_SIZE]; /* which memvm keeps for the broker */
    struct memvm_broker_key answer;
    int result = -1;
    if (memvm_bind_key(MEMVM_KEY_X25519, public_key) == 0 && memvm_bind_data(said + domain_size) == 0 &&
        memvm_token(token, sizeof token) >= 0 && memvm_broker_key(disk, challenge.nonce, &answer) == 0) {
        memcpy(said + info_size, answer.sealed, sizeof answer.sealed);
        if (ed25519_sha512_verify(broker, sizeof said, said, answer.signature) &&
            hpke_open(key, answer.sealed, sizeof answer.sealed, HPKE_TEXT(said, info_size), secret_key, public_key))
            result = 0;
        else
            errno = EBADMSG;
        if (memvm_is_wiped(secret_key, sizeof secret_key)) { /* and `key` was, perhaps before it was written */
            explicit_bzero(key, MEMVM_DISK_KEY_SIZE);
            result = -1;
            errno = EKEYREVOKED;
        }
    }
    explicit_bzero(secret_key, sizeof secret_key);
    return result;
}

#endif
