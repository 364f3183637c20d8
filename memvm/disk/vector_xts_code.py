"""The instructions of vector_xts.py, for registers of three widths: a listing each (linux/machine_code.py), one table.

    encrypt, decrypt    rdi keys (_key_block), rsi to, rdx from, rcx sectors, r8 units of a sector, r9 first tweak
    substitute          SubBytes (FIPS 197) of a word
    invert              InvMixColumns of the 16 bytes at rdi

What the registers have:

    bits    blocks      tweaks                           round key    others
    512     zmm0 - 3    zmm4 - 7, of these blocks        zmm8         zmm9 - 13 constants
    256     ymm0 - 7    ymm8 - 11, of the next blocks    ymm12        ymm13 constant
    128     xmm1 - 8    xmm0, of the next block          xmm9         xmm13 constant

    rax counts, r10 is where the blocks' rounds are, r11 the offset of the last round key

Several blocks at once hide how long an instruction takes: AMD's Zen 3 begins two rounds of 256 bits in a cycle, and
ends them four cycles later. With 256 and 128 bits that leaves no registers for as many tweaks: they wait in the
destination, which therefore is not the source, and nobody else's until it is full. The tests assemble the words, and
compare.
"""

from __future__ import annotations

from typing import NamedTuple

_FIRST_TWEAK = """
    c4c1f96ec1                vmovq xmm0, r9                      ; the number, encrypted: the first tweak, T
    c5f9ef4710                vpxor xmm0, xmm0, [rdi+0x10]
    b810000000                mov eax, 0x10
tweak_round:
    c4e279dc440710            vaesenc xmm0, xmm0, [rdi+rax+0x10]
    4883c010                  add rax, 0x10
    4c39d8                    cmp rax, r11
    75f0                      jne tweak_round
    c4e279dd440710            vaesenclast xmm0, xmm0, [rdi+rax+0x10]
"""

_KEYS = """
substitute:
    c5f96ec7                  vmovd xmm0, edi
    c5f970c000                vpshufd xmm0, xmm0, 0x0
    c4e379dfc000              vaeskeygenassist xmm0, xmm0, 0x0
    c5f97ec0                  vmovd eax, xmm0
    c5fc77                    vzeroall
    c3                        ret
invert:
    c4e279db07                vaesimc xmm0, [rdi]
    c5fa7f07                  vmovdqu [rdi], xmm0
    c5fc77                    vzeroall
    c3                        ret
"""

# xmm0 times x. This and what follows is in its listing as often as it is named there: calls took a sixth longer.
_DOUBLE = """
    c57970f813                vpshufd xmm15, xmm0, 0x13           ; in every half, the bit that falls out of the other,
    c4c10172e71f              vpsrad xmm15, xmm15, 0x1f           ; 32 times
    c44101dbfd                vpand xmm15, xmm15, xmm13
    c5f9d4c0                  vpaddq xmm0, xmm0, xmm0
    c4c179efc7                vpxor xmm0, xmm0, xmm15
"""

_NEXT_TWEAKS = """
    c4c10d73d80f              vpsrldq ymm14, ymm8, 0xf            ; times x^8, by a byte:
    c4430d44f500              vpclmulqdq ymm14, ymm14, ymm13, 0x0 ; what falls out comes back below, times 0x87
    c4c13d73f801              vpslldq ymm8, ymm8, 0x1
    c4413defc6                vpxor ymm8, ymm8, ymm14
    c4c10573d90f              vpsrldq ymm15, ymm9, 0xf
    c4430544fd00              vpclmulqdq ymm15, ymm15, ymm13, 0x0
    c4c13573f901              vpslldq ymm9, ymm9, 0x1
    c44135efcf                vpxor ymm9, ymm9, ymm15
    c4c10d73da0f              vpsrldq ymm14, ymm10, 0xf
    c4430d44f500              vpclmulqdq ymm14, ymm14, ymm13, 0x0
    c4c12d73fa01              vpslldq ymm10, ymm10, 0x1
    c4412defd6                vpxor ymm10, ymm10, ymm14
    c4c10573db0f              vpsrldq ymm15, ymm11, 0xf
    c4430544fd00              vpclmulqdq ymm15, ymm15, ymm13, 0x0
    c4c12573fb01              vpslldq ymm11, ymm11, 0x1
    c44125efdf                vpxor ymm11, ymm11, ymm15
"""

_REDUCTION = """
reduction:
    87000000000000000100000000000000 .byte 0x87, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0
"""

_SHIFTS = """
shifts:
    0000010102020303          .byte 0, 0, 1, 1, 2, 2, 3, 3
"""

_512 = """
encrypt:
    4c8d15b6010000            lea r10, [rip+encrypt_blocks]
    eb07                      jmp begin
decrypt:
    4c8d151b020000            lea r10, [rip+decrypt_blocks]
begin:
    4885c9                    test rcx, rcx
    0f846c010000              je end
    4c8b1f                    mov r11, [rdi]                      ; bytes from the first round key to the last
    b887000000                mov eax, 0x87                       ; x^128 is x^7 + x^2 + x + 1 in this field
    6272fd487cc8              vpbroadcastq zmm9, rax
    b840000000                mov eax, 0x40
    6272fd487cd8              vpbroadcastq zmm11, rax
    b804000000                mov eax, 0x4
    6272fd487ce8              vpbroadcastq zmm13, rax
    62727d48321576020000      vpmovzxbq zmm10, [rip+shifts]       ; lane i: left by i bits; the rest, right
    6251a548fbda              vpsubq zmm11, zmm11, zmm10
    6251ad48d4e5              vpaddq zmm12, zmm10, zmm13          ; and the same by i + 4
    6251a548fbed              vpsubq zmm13, zmm11, zmm13
sector:
{first_tweak}
    62f3fd4843c000            vshufi64x2 zmm0, zmm0, zmm0, 0x0    ; in all four lanes
    62d2fd4847e2              vpsllvq zmm4, zmm0, zmm10           ; T, Tx, Txx, Txxx: both halves of a lane shifted
    62d2fd4845cb              vpsrlvq zmm1, zmm0, zmm11           ; what falls out of them
    62d3754844d101            vpclmulqdq zmm2, zmm1, zmm9, 0x1    ; above: comes back below, times 0x87
    62f1754873f908            vpslldq zmm1, zmm1, 0x8             ; below: belongs above
    62f3f54825e296            vpternlogq zmm4, zmm1, zmm2, 0x96   ; the exclusive or of the three
    62d2fd4847ec              vpsllvq zmm5, zmm0, zmm12           ; the next four tweaks likewise
    62d2fd4845cd              vpsrlvq zmm1, zmm0, zmm13
    62d3754844d101            vpclmulqdq zmm2, zmm1, zmm9, 0x1
    62f1754873f908            vpslldq zmm1, zmm1, 0x8
    62f3f54825ea96            vpternlogq zmm5, zmm1, zmm2, 0x96
    e8b9000000                call second_half
    4b8d0400                  lea rax, [r8+r8]
blocks:
    62f1dd48ef02              vpxorq zmm0, zmm4, [rdx]
    62f1d548ef4a01            vpxorq zmm1, zmm5, [rdx+0x40]
    62f1cd48ef5202            vpxorq zmm2, zmm6, [rdx+0x80]
    62f1c548ef5a03            vpxorq zmm3, zmm7, [rdx+0xc0]
    50                        push rax
    41ffd2                    call r10
    58                        pop rax
    62f1fd48efc4              vpxorq zmm0, zmm0, zmm4
    62f1f548efcd              vpxorq zmm1, zmm1, zmm5
    62f1ed48efd6              vpxorq zmm2, zmm2, zmm6
    62f1e548efdf              vpxorq zmm3, zmm3, zmm7
    62f1fe487f06              vmovdqu64 [rsi], zmm0
    62f1fe487f4e01            vmovdqu64 [rsi+0x40], zmm1
    62f1fe487f5602            vmovdqu64 [rsi+0x80], zmm2
    62f1fe487f5e03            vmovdqu64 [rsi+0xc0], zmm3
    4881c200010000            add rdx, 0x100
    4881c600010000            add rsi, 0x100
    62f17d4873de0f            vpsrldq zmm0, zmm6, 0xf             ; the next tweaks: times x^8, by a byte,
    62f1754873df0f            vpsrldq zmm1, zmm7, 0xf             ; what falls out comes back below, times 0x87
    62d37d4844c100            vpclmulqdq zmm0, zmm0, zmm9, 0x0
    62d3754844c900            vpclmulqdq zmm1, zmm1, zmm9, 0x0
    62f15d4873fe01            vpslldq zmm4, zmm6, 0x1
    62f1554873ff01            vpslldq zmm5, zmm7, 0x1
    62f1dd48efe0              vpxorq zmm4, zmm4, zmm0
    62f1d548efe9              vpxorq zmm5, zmm5, zmm1
    e819000000                call second_half
    48ffc8                    dec rax
    0f855bffffff              jne blocks
    4d01c1                    add r9, r8
    48ffc9                    dec rcx
    0f85d7feffff              jne sector
    c5fc77                    vzeroall                            ; no key, tweak or plaintext stays behind
end:
    c3                        ret
second_half:
    62f17d4873dc0f            vpsrldq zmm0, zmm4, 0xf
    62f1754873dd0f            vpsrldq zmm1, zmm5, 0xf
    62d37d4844c100            vpclmulqdq zmm0, zmm0, zmm9, 0x0
    62d3754844c900            vpclmulqdq zmm1, zmm1, zmm9, 0x0
    62f14d4873fc01            vpslldq zmm6, zmm4, 0x1
    62f1454873fd01            vpslldq zmm7, zmm5, 0x1
    62f1cd48eff0              vpxorq zmm6, zmm6, zmm0
    62f1c548eff9              vpxorq zmm7, zmm7, zmm1
    c3                        ret
"""

_512_BLOCKS = """
{way}_blocks:
    b810000000                mov eax, 0x10
    62727d485a4710            vbroadcasti32x4 zmm8, [rdi+0x100]
    62d1fd48efc0              vpxorq zmm0, zmm0, zmm8
    62d1f548efc8              vpxorq zmm1, zmm1, zmm8
    62d1ed48efd0              vpxorq zmm2, zmm2, zmm8
    62d1e548efd8              vpxorq zmm3, zmm3, zmm8
{way}_round:
    62727d485a440710          vbroadcasti32x4 zmm8, [rdi+rax+0x100]
    62d27d48{op}c0            {aes} zmm0, zmm0, zmm8
    62d27548{op}c8            {aes} zmm1, zmm1, zmm8
    62d26d48{op}d0            {aes} zmm2, zmm2, zmm8
    62d26548{op}d8            {aes} zmm3, zmm3, zmm8
    4883c010                  add rax, 0x10
    4c39d8                    cmp rax, r11
    75d7                      jne {way}_round
    62727d485a440710          vbroadcasti32x4 zmm8, [rdi+rax+0x100]
    62d27d48{last}c0          {aes}last zmm0, zmm0, zmm8
    62d27548{last}c8          {aes}last zmm1, zmm1, zmm8
    62d26d48{last}d0          {aes}last zmm2, zmm2, zmm8
    62d26548{last}d8          {aes}last zmm3, zmm3, zmm8
    c3                        ret
"""

_256 = """
encrypt:
    4c8d15cf020000            lea r10, [rip+encrypt_blocks]
    eb07                      jmp begin
decrypt:
    4c8d156a030000            lea r10, [rip+decrypt_blocks]
begin:
    4885c9                    test rcx, rcx
    0f84bc020000              je end
    4c8b1f                    mov r11, [rdi]                      ; bytes from the first round key to the last
    c4627d5a2d1d040000        vbroadcasti128 ymm13, [rip+reduction] ; 0x87: x^128 is x^7 + x^2 + x + 1 in this field
sector:
{first_tweak}
    c5796fc0                  vmovdqa xmm8, xmm0                  ; T, and by x, x^2 and so on
{double}
    c4633d38c001              vinserti128 ymm8, ymm8, xmm0, 0x1
{double}
    c5796fc8                  vmovdqa xmm9, xmm0
{double}
    c4633538c801              vinserti128 ymm9, ymm9, xmm0, 0x1
{double}
    c5796fd0                  vmovdqa xmm10, xmm0
{double}
    c4632d38d001              vinserti128 ymm10, ymm10, xmm0, 0x1
{double}
    c5796fd8                  vmovdqa xmm11, xmm0
{double}
    c4632538d801              vinserti128 ymm11, ymm11, xmm0, 0x1
    4b8d0400                  lea rax, [r8+r8]
blocks:
    c5bdef02                  vpxor ymm0, ymm8, [rdx]
    c57e7f06                  vmovdqu [rsi], ymm8                 ; tweaks wait where their blocks will be
    c5b5ef4a20                vpxor ymm1, ymm9, [rdx+0x20]
    c57e7f4e20                vmovdqu [rsi+0x20], ymm9
    c5adef5240                vpxor ymm2, ymm10, [rdx+0x40]
    c57e7f5640                vmovdqu [rsi+0x40], ymm10
    c5a5ef5a60                vpxor ymm3, ymm11, [rdx+0x60]
    c57e7f5e60                vmovdqu [rsi+0x60], ymm11
{next_tweaks}
    c5bdefa280000000          vpxor ymm4, ymm8, [rdx+0x80]
    c57e7f8680000000          vmovdqu [rsi+0x80], ymm8
    c5b5efaaa0000000          vpxor ymm5, ymm9, [rdx+0xa0]
    c57e7f8ea0000000          vmovdqu [rsi+0xa0], ymm9
    c5adefb2c0000000          vpxor ymm6, ymm10, [rdx+0xc0]
    c57e7f96c0000000          vmovdqu [rsi+0xc0], ymm10
    c5a5efbae0000000          vpxor ymm7, ymm11, [rdx+0xe0]
    c57e7f9ee0000000          vmovdqu [rsi+0xe0], ymm11
{next_tweaks}
    50                        push rax
    41ffd2                    call r10
    58                        pop rax
    c5fdef06                  vpxor ymm0, ymm0, [rsi]
    c5fe7f06                  vmovdqu [rsi], ymm0
    c5f5ef4e20                vpxor ymm1, ymm1, [rsi+0x20]
    c5fe7f4e20                vmovdqu [rsi+0x20], ymm1
    c5edef5640                vpxor ymm2, ymm2, [rsi+0x40]
    c5fe7f5640                vmovdqu [rsi+0x40], ymm2
    c5e5ef5e60                vpxor ymm3, ymm3, [rsi+0x60]
    c5fe7f5e60                vmovdqu [rsi+0x60], ymm3
    c5ddefa680000000          vpxor ymm4, ymm4, [rsi+0x80]
    c5fe7fa680000000          vmovdqu [rsi+0x80], ymm4
    c5d5efaea0000000          vpxor ymm5, ymm5, [rsi+0xa0]
    c5fe7faea0000000          vmovdqu [rsi+0xa0], ymm5
    c5cdefb6c0000000          vpxor ymm6, ymm6, [rsi+0xc0]
    c5fe7fb6c0000000          vmovdqu [rsi+0xc0], ymm6
    c5c5efbee0000000          vpxor ymm7, ymm7, [rsi+0xe0]
    c5fe7fbee0000000          vmovdqu [rsi+0xe0], ymm7
    4881c200010000            add rdx, 0x100
    4881c600010000            add rsi, 0x100
    48ffc8                    dec rax
    0f8560feffff              jne blocks
    4d01c1                    add r9, r8
    48ffc9                    dec rcx
    0f8553fdffff              jne sector
    c5fc77                    vzeroall                            ; no key, tweak or plaintext stays behind
end:
    c3                        ret
"""

_256_BLOCKS = """
{way}_blocks:
    b810000000                mov eax, 0x10
    c4627d5aa700010000        vbroadcasti128 ymm12, [rdi+0x100]
    c4c17defc4                vpxor ymm0, ymm0, ymm12
    c4c175efcc                vpxor ymm1, ymm1, ymm12
    c4c16defd4                vpxor ymm2, ymm2, ymm12
    c4c165efdc                vpxor ymm3, ymm3, ymm12
    c4c15defe4                vpxor ymm4, ymm4, ymm12
    c4c155efec                vpxor ymm5, ymm5, ymm12
    c4c14deff4                vpxor ymm6, ymm6, ymm12
    c4c145effc                vpxor ymm7, ymm7, ymm12
{way}_round:
    c4627d5aa40700010000      vbroadcasti128 ymm12, [rdi+rax+0x100]
    c4c27d{op}c4              {aes} ymm0, ymm0, ymm12
    c4c275{op}cc              {aes} ymm1, ymm1, ymm12
    c4c26d{op}d4              {aes} ymm2, ymm2, ymm12
    c4c265{op}dc              {aes} ymm3, ymm3, ymm12
    c4c25d{op}e4              {aes} ymm4, ymm4, ymm12
    c4c255{op}ec              {aes} ymm5, ymm5, ymm12
    c4c24d{op}f4              {aes} ymm6, ymm6, ymm12
    c4c245{op}fc              {aes} ymm7, ymm7, ymm12
    4883c010                  add rax, 0x10
    4c39d8                    cmp rax, r11
    75c5                      jne {way}_round
    c4627d5aa40700010000      vbroadcasti128 ymm12, [rdi+rax+0x100]
    c4c27d{last}c4            {aes}last ymm0, ymm0, ymm12
    c4c275{last}cc            {aes}last ymm1, ymm1, ymm12
    c4c26d{last}d4            {aes}last ymm2, ymm2, ymm12
    c4c265{last}dc            {aes}last ymm3, ymm3, ymm12
    c4c25d{last}e4            {aes}last ymm4, ymm4, ymm12
    c4c255{last}ec            {aes}last ymm5, ymm5, ymm12
    c4c24d{last}f4            {aes}last ymm6, ymm6, ymm12
    c4c245{last}fc            {aes}last ymm7, ymm7, ymm12
    c3                        ret
"""

_128 = """
encrypt:
    4c8d15d5010000            lea r10, [rip+encrypt_blocks]
    eb07                      jmp begin
decrypt:
    4c8d156d020000            lea r10, [rip+decrypt_blocks]
begin:
    4885c9                    test rcx, rcx
    0f84c2010000              je end
    4c8b1f                    mov r11, [rdi]                      ; bytes from the first round key to the last
    c57a6f2d1e030000          vmovdqu xmm13, [rip+reduction]      ; 0x87: x^128 is x^7 + x^2 + x + 1 in this field
sector:
{first_tweak}
    4a8d048500000000          lea rax, [r8*4]
blocks:
    c5f9ef0a                  vpxor xmm1, xmm0, [rdx]
    c5fa7f06                  vmovdqu [rsi], xmm0                 ; a tweak waits where its block will be
{double}
    c5f9ef5210                vpxor xmm2, xmm0, [rdx+0x10]
    c5fa7f4610                vmovdqu [rsi+0x10], xmm0
{double}
    c5f9ef5a20                vpxor xmm3, xmm0, [rdx+0x20]
    c5fa7f4620                vmovdqu [rsi+0x20], xmm0
{double}
    c5f9ef6230                vpxor xmm4, xmm0, [rdx+0x30]
    c5fa7f4630                vmovdqu [rsi+0x30], xmm0
{double}
    c5f9ef6a40                vpxor xmm5, xmm0, [rdx+0x40]
    c5fa7f4640                vmovdqu [rsi+0x40], xmm0
{double}
    c5f9ef7250                vpxor xmm6, xmm0, [rdx+0x50]
    c5fa7f4650                vmovdqu [rsi+0x50], xmm0
{double}
    c5f9ef7a60                vpxor xmm7, xmm0, [rdx+0x60]
    c5fa7f4660                vmovdqu [rsi+0x60], xmm0
{double}
    c579ef4270                vpxor xmm8, xmm0, [rdx+0x70]
    c5fa7f4670                vmovdqu [rsi+0x70], xmm0
{double}
    50                        push rax
    41ffd2                    call r10
    58                        pop rax
    c5f1ef0e                  vpxor xmm1, xmm1, [rsi]
    c5fa7f0e                  vmovdqu [rsi], xmm1
    c5e9ef5610                vpxor xmm2, xmm2, [rsi+0x10]
    c5fa7f5610                vmovdqu [rsi+0x10], xmm2
    c5e1ef5e20                vpxor xmm3, xmm3, [rsi+0x20]
    c5fa7f5e20                vmovdqu [rsi+0x20], xmm3
    c5d9ef6630                vpxor xmm4, xmm4, [rsi+0x30]
    c5fa7f6630                vmovdqu [rsi+0x30], xmm4
    c5d1ef6e40                vpxor xmm5, xmm5, [rsi+0x40]
    c5fa7f6e40                vmovdqu [rsi+0x40], xmm5
    c5c9ef7650                vpxor xmm6, xmm6, [rsi+0x50]
    c5fa7f7650                vmovdqu [rsi+0x50], xmm6
    c5c1ef7e60                vpxor xmm7, xmm7, [rsi+0x60]
    c5fa7f7e60                vmovdqu [rsi+0x60], xmm7
    c539ef4670                vpxor xmm8, xmm8, [rsi+0x70]
    c57a7f4670                vmovdqu [rsi+0x70], xmm8
    4883ea80                  sub rdx, -0x80
    4883ee80                  sub rsi, -0x80
    48ffc8                    dec rax
    0f8586feffff              jne blocks
    4d01c1                    add r9, r8
    48ffc9                    dec rcx
    0f854cfeffff              jne sector
    c5fc77                    vzeroall                            ; no key, tweak or plaintext stays behind
end:
    c3                        ret
"""

_128_BLOCKS = """
{way}_blocks:
    b810000000                mov eax, 0x10
    c57a6f8f00010000          vmovdqu xmm9, [rdi+0x100]
    c4c171efc9                vpxor xmm1, xmm1, xmm9
    c4c169efd1                vpxor xmm2, xmm2, xmm9
    c4c161efd9                vpxor xmm3, xmm3, xmm9
    c4c159efe1                vpxor xmm4, xmm4, xmm9
    c4c151efe9                vpxor xmm5, xmm5, xmm9
    c4c149eff1                vpxor xmm6, xmm6, xmm9
    c4c141eff9                vpxor xmm7, xmm7, xmm9
    c44139efc1                vpxor xmm8, xmm8, xmm9
{way}_round:
    c57a6f8c0700010000        vmovdqu xmm9, [rdi+rax+0x100]
    c4c271{op}c9              {aes} xmm1, xmm1, xmm9
    c4c269{op}d1              {aes} xmm2, xmm2, xmm9
    c4c261{op}d9              {aes} xmm3, xmm3, xmm9
    c4c259{op}e1              {aes} xmm4, xmm4, xmm9
    c4c251{op}e9              {aes} xmm5, xmm5, xmm9
    c4c249{op}f1              {aes} xmm6, xmm6, xmm9
    c4c241{op}f9              {aes} xmm7, xmm7, xmm9
    c44239{op}c1              {aes} xmm8, xmm8, xmm9
    4883c010                  add rax, 0x10
    4c39d8                    cmp rax, r11
    75c6                      jne {way}_round
    c57a6f8c0700010000        vmovdqu xmm9, [rdi+rax+0x100]
    c4c271{last}c9            {aes}last xmm1, xmm1, xmm9
    c4c269{last}d1            {aes}last xmm2, xmm2, xmm9
    c4c261{last}d9            {aes}last xmm3, xmm3, xmm9
    c4c259{last}e1            {aes}last xmm4, xmm4, xmm9
    c4c251{last}e9            {aes}last xmm5, xmm5, xmm9
    c4c249{last}f1            {aes}last xmm6, xmm6, xmm9
    c4c241{last}f9            {aes}last xmm7, xmm7, xmm9
    c44239{last}c1            {aes}last xmm8, xmm8, xmm9
    c3                        ret
"""


def _listing(steps: str, blocks: str, constants: str) -> str:
    """All of a width's instructions: the blocks' rounds in both directions, which differ in the instruction alone."""
    both = steps.format(first_tweak=_FIRST_TWEAK, double=_DOUBLE, next_tweaks=_NEXT_TWEAKS)
    encrypt = blocks.format(way="encrypt", aes="vaesenc", op="dc", last="dd")
    decrypt = blocks.format(way="decrypt", aes="vaesdec", op="de", last="df")
    return both + encrypt + decrypt + _KEYS + constants


class Width(NamedTuple):
    """Instructions for registers of one width."""

    bits: int
    needed: tuple[str, ...]
    """What the processor has to have, in the words of /proc/cpuinfo."""
    listing: str


WIDTHS = (
    Width(512, ("aes", "avx", "avx512f", "avx512bw", "vaes", "vpclmulqdq"), _listing(_512, _512_BLOCKS, _SHIFTS)),
    Width(256, ("aes", "avx", "avx2", "vaes", "vpclmulqdq"), _listing(_256, _256_BLOCKS, _REDUCTION)),
    Width(128, ("aes", "avx", "pclmulqdq"), _listing(_128, _128_BLOCKS, _REDUCTION)),
)
"""The widest first. 512: Intel since Ice Lake, but for client processors since Alder Lake; AMD since Zen 4. 256: Alder
Lake, Zen 3. 128: Sandy Bridge, Bulldozer."""
