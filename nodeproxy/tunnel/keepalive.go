// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout is how long what was sent may wait for an acknowledgement.
const userTimeout = 30 * time.Second

// keepAlive finds peers that are gone without a word, where no PING does: in
// the 30 s that it takes there.
func keepAlive(nc net.Conn) {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	if raw, err := t.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
		})
	}
}
