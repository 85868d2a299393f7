// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Switch joins machines: what one sends reaches all others. A machine that is
// switched off and on again finds its place.
type Switch struct {
	listener net.Listener
	path     string

	mu    sync.Mutex
	ports map[net.Conn]bool
	cut   bool
	done  sync.WaitGroup
}

// NewSwitch makes a switch that lasts as long as the test.
func NewSwitch(t testing.TB) *Switch {
	t.Helper()
	dir, err := newRunDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "switch")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatalf("make switch: %v", err)
	}
	s := &Switch{listener: listener, path: path, ports: make(map[net.Conn]bool)}
	s.done.Add(1)
	go s.accept()
	t.Cleanup(func() {
		s.close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Cut loses every frame from now on, or no more: a cable that is pulled.
func (s *Switch) Cut(cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = cut
}

func (s *Switch) accept() {
	defer s.done.Done()
	for {
		port, err := s.listener.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		s.ports[port] = true
		s.mu.Unlock()
		s.done.Add(1)
		go s.forward(port)
	}
}

// forward reads frames as qemu's stream sockets carry them, each after its
// length in four bytes (net/stream.c), and writes them to the other ports.
func (s *Switch) forward(port net.Conn) {
	defer s.done.Done()
	defer func() {
		s.mu.Lock()
		delete(s.ports, port)
		s.mu.Unlock()
		_ = port.Close()
	}()
	frame := make([]byte, 4+1<<17)
	for {
		if _, err := io.ReadFull(port, frame[:4]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(frame)
		if int(n) > len(frame)-4 {
			return
		}
		if _, err := io.ReadFull(port, frame[4:4+n]); err != nil {
			return
		}
		s.send(port, frame[:4+n])
	}
}

func (s *Switch) send(from net.Conn, frame []byte) {
	s.mu.Lock()
	var others []net.Conn
	for port := range s.ports {
		if port != from && !s.cut {
			others = append(others, port)
		}
	}
	s.mu.Unlock()
	for _, port := range others {
		_, _ = port.Write(frame) // one that is gone has its own goroutine to say so
	}
}

func (s *Switch) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	for port := range s.ports {
		_ = port.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}

// networkFile configures the machine's interface, for systemd-networkd.
func networkFile(addresses []string) (File, error) {
	text := "[Match]\nDriver=virtio_net\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n"
	for _, a := range addresses {
		if _, _, err := net.ParseCIDR(a); err != nil {
			return File{}, fmt.Errorf("parse address: %w", err)
		}
		text += "[Address]\nAddress=" + a + "\nDuplicateAddressDetection=none\n"
	}
	return File{Path: "/etc/systemd/network/10-vm.network", Content: text}, nil
}
