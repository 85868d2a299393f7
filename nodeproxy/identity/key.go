// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[private key]"

// Key is a private key that signs and cannot be shown: however it is printed,
// logged or marshalled, it says only that it is a key.
type Key struct{ signer crypto.Signer }

var (
	_ crypto.Signer  = Key{}
	_ fmt.Formatter  = Key{}
	_ slog.LogValuer = Key{}
)

// NewKey wraps a private key.
func NewKey(s crypto.Signer) Key { return Key{s} }

// ParseKey reads the one private key of a PEM file (PKCS#8, SEC 1 or PKCS#1)
// and overwrites the decoded bytes. The caller overwrites text.
func ParseKey(text []byte) (Key, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return Key{}, errors.New("no private key in PEM form")
		}
		// "EC PARAMETERS" precedes keys that openssl ecparam wrote.
		if block.Type != "EC PARAMETERS" {
			defer clear(block.Bytes)
			return parseKeyBlock(block)
		}
		text = rest
	}
}

func parseKeyBlock(block *pem.Block) (Key, error) {
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		return ParsePKCS8(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return Key{}, fmt.Errorf("PEM block is %.40q, want a private key", block.Type)
	}
	return newKey(key, err)
}

// ParsePKCS8 reads what Key.PKCS8 returns.
func ParsePKCS8(der []byte) (Key, error) { return newKey(x509.ParsePKCS8PrivateKey(der)) }

func newKey(key any, err error) (Key, error) {
	if err != nil {
		return Key{}, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return Key{}, fmt.Errorf("private key of type %T cannot sign", key)
	}
	return Key{signer}, nil
}

// Public returns the public key.
func (k Key) Public() crypto.PublicKey { return k.signer.Public() }

// Sign signs with the private key.
func (k Key) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.signer.Sign(rand, digest, opts)
}

// PKCS8 returns the key itself, for the node's own successor and nobody else.
// The caller overwrites it.
func (k Key) PKCS8() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return der, nil
}

// Matches reports whether the certificate is about this key.
func (k Key) Matches(cert *x509.Certificate) bool {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(k.Public())
}

func (Key) String() string { return redacted }

// GoString is String.
func (Key) GoString() string { return redacted }

// Format writes String for every verb, %#v and %x included.
func (Key) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue is String.
func (Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText is String; encoding/json uses it too.
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }
