// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"encoding/binary"
	"math"
)

type setting uint16

// Settings of RFC 9113, section 6.5.2.
const (
	settingHeaderTableSize      setting = 1
	settingEnablePush           setting = 2
	settingMaxConcurrentStreams setting = 3
	settingInitialWindowSize    setting = 4
	settingMaxFrameSize         setting = 5
	settingMaxHeaderListSize    setting = 6

	settingLen = 6
)

// headerTable is the dynamic table that we offer to the peer's encoder. None: a
// connection must cost little while it is idle, header blocks are short and come
// once per connection of an application, and there is no table to churn or to bomb
// (CVE-2016-6581).
const headerTable = 0

// peerSettings is what binds us. SETTINGS_HEADER_TABLE_SIZE does not, because our
// header blocks use no table; nor does SETTINGS_MAX_FRAME_SIZE, whose least value
// is larger than what fits a record with its header.
type peerSettings struct {
	initialWindow int32
	maxStreams    uint32
	maxHeaderList uint32
}

var initialSettings = peerSettings{
	initialWindow: minWindow, maxStreams: initialStreams, maxHeaderList: math.MaxUint32,
}

func (c *Conn) sendSettings() {
	list := [...]struct {
		id    setting
		value uint32
	}{
		{settingHeaderTableSize, headerTable},
		{settingEnablePush, 0},
		{settingInitialWindowSize, c.cfg.StreamWindow},
		{settingMaxFrameSize, c.cfg.MaxFrameSize},
		{settingMaxHeaderListSize, c.cfg.headerList(c.client)},
		{settingMaxConcurrentStreams, c.cfg.MaxStreams},
	}
	n := len(list)
	if c.client {
		n-- // a server may open none
	}
	p := c.queue(frameSettings, 0, 0, n*settingLen)
	for _, s := range list[:n] {
		binary.BigEndian.PutUint16(p, uint16(s.id))
		binary.BigEndian.PutUint32(p[2:], s.value)
		p = p[settingLen:]
	}
}

// settings applies the peer's SETTINGS in their order and acknowledges them,
// RFC 9113 section 6.5.3.
func (c *Conn) settings(p []byte) error {
	if err := c.nuisance("SETTINGS"); err != nil {
		return err
	}
	if !c.gotSettings {
		c.peer.maxStreams = math.MaxUint32 // unlimited unless the frame says otherwise
	}
	window := c.peer.initialWindow
	for ; len(p) >= settingLen; p = p[settingLen:] {
		if err := c.setting(setting(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	c.gotSettings = true
	c.queue(frameSettings, flagAck, 0, 0)
	if c.peer.initialWindow != window {
		if err := c.shiftWindows(int64(c.peer.initialWindow) - int64(window)); err != nil {
			return err
		}
	}
	c.ev.OnSettings()
	return nil
}

func (c *Conn) setting(id setting, v uint32) error {
	switch id {
	case settingEnablePush:
		if v > 1 || c.client && v == 1 {
			return connError(ProtocolError, "invalid SETTINGS_ENABLE_PUSH")
		}
	case settingMaxConcurrentStreams:
		c.peer.maxStreams = v
	case settingInitialWindowSize:
		if v > maxWindow {
			return connError(FlowControlError, "invalid SETTINGS_INITIAL_WINDOW_SIZE")
		}
		c.peer.initialWindow = int32(v)
	case settingMaxFrameSize:
		if v < minMaxFrame || v > maxMaxFrame {
			return connError(ProtocolError, "invalid SETTINGS_MAX_FRAME_SIZE")
		}
	case settingMaxHeaderListSize:
		c.peer.maxHeaderList = v
	}
	return nil // HEADER_TABLE_SIZE: see peerSettings; unknown ones are ignored
}

// shiftWindows applies a new initial window to the streams that exist. Windows may
// become negative (RFC 9113 section 6.9.2), but must not overflow.
func (c *Conn) shiftWindows(d int64) error {
	list := c.streams.all()
	for _, s := range list {
		w := int64(s.sendWindow) + d
		if w > maxWindow {
			return connError(FlowControlError, "stream window overflows")
		}
		s.sendWindow = int32(w)
	}
	for _, s := range list {
		c.wakeStream(s)
	}
	return nil
}

func (c *Conn) settingsAck() error {
	if c.gotAck {
		return c.nuisance("SETTINGS acknowledgements")
	}
	c.gotAck = true
	return nil
}
