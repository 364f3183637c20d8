/* HPKE (RFC 9180), the receiver's side of one suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode,
 * one message without associated data. With nettle and hogweed. Section numbers are the RFC's.
 */
#ifndef GUESTS_HPKE_H
#define GUESTS_HPKE_H

#include <nettle/curve25519.h>
#include <nettle/gcm.h>
#include <nettle/hmac.h>
#include <nettle/memops.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { HPKE_ENCAPSULATED_SIZE = 32, HPKE_TAG_SIZE = 16, HPKE_HASH_SIZE = 32, HPKE_NONCE_SIZE = 12 };

struct hpke_text {
    const void *data;
    size_t size;
};

#define HPKE_TEXT(pointer, length) ((struct hpke_text){(pointer), (length)})
#define HPKE_LABEL(literal) HPKE_TEXT(literal, sizeof(literal) - 1)
#define HPKE_KEM HPKE_LABEL("KEM\x00\x20")
#define HPKE_SUITE HPKE_LABEL("HPKE\x00\x20\x00\x01\x00\x02")

/* HMAC-SHA-256 of several texts, one after the other. */
static inline void hpke_hmac(unsigned char out[HPKE_HASH_SIZE], struct hpke_text key, const struct hpke_text *texts,
                             int count)
{
    struct hmac_sha256_ctx hmac;
    hmac_sha256_set_key(&hmac, key.size, key.data);
    for (int i = 0; i < count; i++)
        hmac_sha256_update(&hmac, texts[i].size, texts[i].data);
    hmac_sha256_digest(&hmac, HPKE_HASH_SIZE, out);
}

/* LabeledExtract of section 4. */
static inline void hpke_extract(unsigned char out[HPKE_HASH_SIZE], struct hpke_text suite, struct hpke_text salt,
                                struct hpke_text label, struct hpke_text secret)
{
    const struct hpke_text texts[] = {HPKE_LABEL("HPKE-v1"), suite, label, secret};
    hpke_hmac(out, salt, texts, 4);
}

/* LabeledExpand of section 4, for at most one hash. */
static inline void hpke_expand(unsigned char *out, size_t size, struct hpke_text suite,
                               const unsigned char key[HPKE_HASH_SIZE], struct hpke_text label, struct hpke_text info)
{
    const unsigned char length[2] = {0, (unsigned char)size};
    unsigned char block[HPKE_HASH_SIZE];
    const struct hpke_text texts[] = {HPKE_TEXT(length, 2), HPKE_LABEL("HPKE-v1"), suite, label, info,
                                      HPKE_LABEL("\x01")};
    hpke_hmac(block, HPKE_TEXT(key, HPKE_HASH_SIZE), texts, 6);
    memcpy(out, block, size);
    explicit_bzero(block, sizeof block);
}

/* Decap of section 4.1. False for an encapsulated key that no honest sender makes. */
static inline bool hpke_decapsulate(unsigned char shared[HPKE_HASH_SIZE], const unsigned char *encapsulated,
                                    const unsigned char secret_key[32], const unsigned char public_key[32])
{
    static const unsigned char nothing[32];
    unsigned char point[32], key[HPKE_HASH_SIZE], context[64];
    curve25519_mul(point, secret_key, encapsulated);
    bool is_good = !memeql_sec(point, nothing, sizeof point);
    memcpy(context, encapsulated, 32);
    memcpy(context + 32, public_key, 32);
    hpke_extract(key, HPKE_KEM, HPKE_LABEL(""), HPKE_LABEL("eae_prk"), HPKE_TEXT(point, sizeof point));
    hpke_expand(shared, HPKE_HASH_SIZE, HPKE_KEM, key, HPKE_LABEL("shared_secret"), HPKE_TEXT(context, sizeof context));
    explicit_bzero(point, sizeof point);
    explicit_bzero(key, sizeof key);
    return is_good;
}

/* Open a message of `size` bytes: encapsulated key, ciphertext, tag. What was encrypted, size - 48 bytes, goes to `plain`.
 * False if it is not for this key, or not what was sent with this `info`. */
static inline bool hpke_open(unsigned char *plain, const unsigned char *message, size_t size, struct hpke_text info,
                             const unsigned char secret_key[32], const unsigned char public_key[32])
{
    if (size < HPKE_ENCAPSULATED_SIZE + HPKE_TAG_SIZE)
        return false;
    unsigned char shared[HPKE_HASH_SIZE], secret[HPKE_HASH_SIZE], key[32], nonce[HPKE_NONCE_SIZE], tag[HPKE_TAG_SIZE];
    unsigned char context[1 + 2 * HPKE_HASH_SIZE] = {0}; /* mode_base, psk_id_hash, info_hash: section 5.1 */
    bool is_good = hpke_decapsulate(shared, message, secret_key, public_key);
    hpke_extract(context + 1, HPKE_SUITE, HPKE_LABEL(""), HPKE_LABEL("psk_id_hash"), HPKE_LABEL(""));
    hpke_extract(context + 1 + HPKE_HASH_SIZE, HPKE_SUITE, HPKE_LABEL(""), HPKE_LABEL("info_hash"), info);
    hpke_extract(secret, HPKE_SUITE, HPKE_TEXT(shared, sizeof shared), HPKE_LABEL("secret"), HPKE_LABEL(""));
    hpke_expand(key, sizeof key, HPKE_SUITE, secret, HPKE_LABEL("key"), HPKE_TEXT(context, sizeof context));
    hpke_expand(nonce, sizeof nonce, HPKE_SUITE, secret, HPKE_LABEL("base_nonce"), HPKE_TEXT(context, sizeof context));
    struct gcm_aes256_ctx gcm;
    size_t length = size - HPKE_ENCAPSULATED_SIZE - HPKE_TAG_SIZE;
    gcm_aes256_set_key(&gcm, key);
    gcm_aes256_set_iv(&gcm, sizeof nonce, nonce);
    gcm_aes256_decrypt(&gcm, length, plain, message + HPKE_ENCAPSULATED_SIZE);
    gcm_aes256_digest(&gcm, sizeof tag, tag);
    is_good = memeql_sec(tag, message + size - HPKE_TAG_SIZE, sizeof tag) && is_good;
    if (!is_good)
        explicit_bzero(plain, length);
    explicit_bzero(shared, sizeof shared);
    explicit_bzero(secret, sizeof secret);
    explicit_bzero(key, sizeof key);
    explicit_bzero(&gcm, sizeof gcm);
    return is_good;
}

#endif
