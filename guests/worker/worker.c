/* worker: counts the words of a secret text on its encrypted disk, which it decrypts itself, inside.
 *
 *     worker [BROKER]
 *
 * It reads sectors of disk 0 as they lie there. The disk's key comes from the key broker whose public key is BROKER (64
 * hexadecimal digits; `memvm broker key` prints them), after the worker was attested; without BROKER, from a line of standard
 * input, 128 digits. The text ends at the first NUL. The words are counted anew for each line on standard input that follows,
 * with the key from the broker anew where the guest was restored meanwhile, or where its tokens were revoked, and key and
 * text wiped with them. Without memvm, or without a disk, it says so.
 */
#include "memvm.h"
#include "memvm_broker.h"

#include <ctype.h>
#include <nettle/xts.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_SIZE = 64, PIECE = 1 << 16, UNIT = 512 };

/* What is wiped when the guest's tokens are revoked: at any moment, and `has_key` first. So who sees it set after he has used
 * the others has used the right ones. */
static struct {
    volatile bool has_key;
    unsigned char key[KEY_SIZE];
    struct xts_aes256_key cipher;
    unsigned char piece[PIECE];
} secrets;

struct count {
    unsigned long long words, bytes;
    bool in_word, ended;
};

static bool from_hexadecimal(unsigned char *bytes, size_t size, const char *text)
{
    for (size_t i = 0; i < size; i++) {
        unsigned value;
        if (!isxdigit((unsigned char)text[2 * i]) || sscanf(&text[2 * i], "%2x", &value) != 1)
            return false;
        bytes[i] = (unsigned char)value;
    }
    return true;
}

static bool name_secrets(void)
{
    return memvm_wipe_with_tokens((void *)&secrets.has_key, sizeof secrets.has_key) == 0 &&
           memvm_wipe_with_tokens(secrets.key, sizeof secrets.key) == 0 &&
           memvm_wipe_with_tokens(&secrets.cipher, sizeof secrets.cipher) == 0 &&
           memvm_wipe_with_tokens(secrets.piece, sizeof secrets.piece) == 0;
}

static void forget_secrets(void)
{
    explicit_bzero((void *)&secrets, sizeof secrets);
}

/* The disk's key, from the broker or else from standard input. */
static bool get_key(const char *broker)
{
    unsigned char broker_key[32];
    if (broker != NULL) {
        if (!from_hexadecimal(broker_key, sizeof broker_key, broker)) {
            printf("the broker's key has to be 64 hexadecimal digits\n");
            return false;
        }
        secrets.has_key = true; /* before it comes: if it is gone then, so is the key */
        if (name_secrets() && memvm_get_disk_key(0, broker_key, secrets.key) == 0)
            return true;
        printf("no key from the broker: %s\n", strerror(errno));
        return false;
    }
    char line[2 * KEY_SIZE + 2];
    bool is_there = fgets(line, sizeof line, stdin) != NULL && from_hexadecimal(secrets.key, KEY_SIZE, line);
    explicit_bzero(line, sizeof line);
    if (!is_there)
        printf("no key: 128 hexadecimal digits are needed\n");
    secrets.has_key = is_there;
    return is_there;
}

/* Decrypts sectors in place; `offset` is that of the first one on the disk. */
static void decrypt(struct xts_aes256_key *key, const struct memvm_disk_info *disk, uint64_t offset,
                    unsigned char *data, size_t size)
{
    for (size_t at = 0; at < size; at += disk->sector_size) {
        uint64_t number = disk->first_tweak + (offset + at) / UNIT;
        unsigned char tweak[16] = {0};
        for (int i = 0; i < 8; i++)
            tweak[i] = (unsigned char)(number >> (8 * i));
        xts_aes256_decrypt_message(key, tweak, disk->sector_size, data + at, data + at);
    }
}

static void count_words(struct count *count, const unsigned char *text, size_t size)
{
    for (size_t i = 0; i < size && !count->ended; i++) {
        bool is_space = isspace(text[i]);
        count->ended = text[i] == '\0';
        count->bytes += !count->ended;
        count->words += !count->ended && !is_space && !count->in_word;
        count->in_word = !is_space;
    }
}

static int count_disk(const struct memvm_disk_info *disk, struct count *count)
{
    xts_aes256_set_decrypt_key(&secrets.cipher, secrets.key);
    for (uint64_t offset = 0; offset < disk->size && !count->ended;) {
        long size = memvm_disk_read(0, secrets.piece, sizeof secrets.piece, offset);
        if (size <= 0) {
            printf("sectors from %llu on: %s\n", (unsigned long long)(offset / disk->sector_size), strerror(errno));
            return 1;
        }
        decrypt(&secrets.cipher, disk, offset, secrets.piece, (size_t)size);
        count_words(count, secrets.piece, (size_t)size);
        offset += (uint64_t)size;
    }
    return 0;
}

static int report(const struct memvm_disk_info *disk)
{
    struct count count = {0};
    int status = count_disk(disk, &count);
    explicit_bzero(&secrets.cipher, sizeof secrets.cipher);
    explicit_bzero(secrets.piece, sizeof secrets.piece);
    if (status != 0)
        return status;
    if (!secrets.has_key)
        printf("the key was taken back while words were counted\n");
    else
        printf("%llu words in %llu bytes\n", count.words, count.bytes);
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct memvm_disk_info disk;
    if (memvm_disk_info(0, &disk) != 0) {
        printf("no disk: %s\n", strerror(errno));
        return 0;
    }
    if (!(disk.flags & MEMVM_DISK_RAW)) {
        printf("the disk is not encrypted for me\n");
        return 1;
    }
    const char *broker = argc > 1 ? argv[1] : NULL;
    struct memvm_generation before;
    memvm_generation(&before);
    int status = get_key(broker) ? report(&disk) : 1;
    for (int c; status == 0 && (c = getchar()) != EOF;) {
        if (c != '\n')
            continue;
        if (broker != NULL && (memvm_generation_changed(&before) || !secrets.has_key)) {
            /* Whoever restored it, or changed it, has to have it attested before it goes on. */
            forget_secrets();
            memvm_generation(&before);
            if (!get_key(broker)) {
                status = 1;
                break;
            }
        }
        status = report(&disk);
    }
    forget_secrets();
    return status;
}
