// SPDX-License-Identifier: Apache-2.0

// Package record protects the records of a TLS 1.3 connection after crypto/tls
// has shaken hands on it: RFC 8446, section 5, and what of section 4.6 may come
// once a handshake is over.
//
// crypto/tls copies each byte twice on its way through memory that this package
// doesn't have: records are opened where they were read to, and sealed from
// where they were put together to where they are sent from. The primitives are
// the standard library's (crypto/cipher, crypto/hkdf) and x/crypto's
// (chacha20poly1305); so are certificates, key exchange and all of the handshake.
//
// A take-over goes like this:
//
//   - Secrets is the tls.Config's KeyLogWriter, of this connection alone. It keeps
//     the two application traffic secrets and nothing else.
//   - Steps is beneath the tls.Conn and gives it one record at a time, so that it
//     holds nothing of what follows when its handshake is done.
//   - New makes a Layer of both. The tls.Conn must not be used any more.
//
// The first record of each direction has the sequence number 0 only if crypto/tls
// has sent and read none after its handshake: a server has to have
// Config.SessionTicketsDisabled. A client of crypto/tls sends nothing, and reads
// nothing before the first Read.
//
// A Layer has no socket, no clock and no goroutine. It must not know HTTP/2,
// certificates, nor where bytes come from or go.
package record
