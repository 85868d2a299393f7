// SPDX-License-Identifier: Apache-2.0

package rawh2

import (
	"context"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestConversation: both ends, as tests use them.
func TestConversation(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	check(t, err)
	defer near.Close()
	far, err := ln.Accept()
	check(t, err)
	defer far.Close()
	client, err := Client(near, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	check(t, err)
	server, err := Server(far)
	check(t, err)

	s, err := server.Await(ctx, Of(http2.FrameSettings, 0))
	check(t, err)
	if len(s.Settings) != 1 || s.Settings[0].Val != 10 {
		t.Errorf("settings %v", s.Settings)
	}
	check(t, client.Connect(1, "10.0.0.1:80", "baggage", "a=b"))
	check(t, client.Data(1, false, []byte("hello ")))
	check(t, client.Data(1, true, []byte("world")))
	check(t, client.Settle(ctx))
	h, err := server.Await(ctx, Of(http2.FrameHeaders, 1))
	check(t, err)
	if h.Field(":authority") != "10.0.0.1:80" || h.Field("baggage") != "a=b" || h.Field("x") != "" || h.StreamEnded() {
		t.Errorf("got %v", h)
	}
	got, end, err := server.Payload(ctx, 1, 8)
	if string(got) != "hello world" || !end || err != nil { // whole frames
		t.Errorf("got %q, %v, %v", got, end, err)
	}
	check(t, server.Reset(1, http2.ErrCodeConnect))
	r, err := client.Await(ctx, Of(http2.FrameRSTStream, 1))
	check(t, err)
	if r.Code != http2.ErrCodeConnect {
		t.Errorf("got %v", r)
	}
	check(t, server.Close())
	check(t, client.Ended(ctx))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
