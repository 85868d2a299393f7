// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/chacha20poly1305"
)

// ivLen is that of all AEADs of TLS 1.3, RFC 8446 section 5.3.
const ivLen = 12

// suite is a cipher suite of TLS 1.3, RFC 8446 appendix B.4.
type suite struct {
	hash    func() hash.Hash
	hashLen int
	keyLen  int
	aead    func(key []byte) (cipher.AEAD, error)
}

var suites = map[uint16]*suite{
	tls.TLS_AES_128_GCM_SHA256:       {sha256.New, sha256.Size, 16, newGCM},
	tls.TLS_AES_256_GCM_SHA384:       {sha512.New384, sha512.Size384, 32, newGCM},
	tls.TLS_CHACHA20_POLY1305_SHA256: {sha256.New, sha256.Size, chacha20poly1305.KeySize, chacha20poly1305.New},
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expand is HKDF-Expand-Label with an empty context, RFC 8446 section 7.1.
func (s *suite) expand(secret []byte, label string, n int) ([]byte, error) {
	const prefix = "tls13 "
	info := make([]byte, 0, 32)
	info = binary.BigEndian.AppendUint16(info, uint16(n))
	info = append(info, byte(len(prefix)+len(label)))
	info = append(append(append(info, prefix...), label...), 0)
	return hkdf.Expand(s.hash, secret, string(info), n)
}

// half protects one direction.
type half struct {
	suite  *suite
	secret []byte // of this generation of keys
	aead   cipher.AEAD
	seq    uint64 // of the next record
	iv     [ivLen]byte
	nonce  [ivLen]byte // of the current record; here, because an AEAD makes it escape
}

// use begins a generation: keys for secret, which is the half's from now on
// (RFC 8446 section 7.3).
func (h *half) use(secret []byte) error {
	key, err := h.suite.expand(secret, "key", h.suite.keyLen)
	if err != nil {
		return fmt.Errorf("derive key: %w", err)
	}
	defer clear(key)
	iv, err := h.suite.expand(secret, "iv", ivLen)
	if err != nil {
		return fmt.Errorf("derive iv: %w", err)
	}
	if h.aead, err = h.suite.aead(key); err != nil {
		return fmt.Errorf("make AEAD: %w", err)
	}
	copy(h.iv[:], iv)
	clear(h.secret)
	h.secret, h.seq = secret, 0
	return nil
}

// update begins the next generation, RFC 8446 section 7.2.
func (h *half) update() error {
	next, err := h.suite.expand(h.secret, "traffic upd", h.suite.hashLen)
	if err != nil {
		return fmt.Errorf("update traffic secret: %w", err)
	}
	return h.use(next)
}

// next returns the nonce of the next record, valid until the one after (RFC 8446
// section 5.3). The sequence number cannot wrap: keys are updated long before.
func (h *half) next() []byte {
	h.nonce = h.iv
	tail := h.nonce[ivLen-8:]
	binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^h.seq)
	h.seq++
	return h.nonce[:]
}
