// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// UnmarshalJSON implements json.Unmarshaler.
func (d *wireDuration) UnmarshalJSON(text []byte) error {
	if bytes.HasPrefix(text, []byte{'"'}) {
		var s string
		if err := json.Unmarshal(text, &s); err != nil {
			return err
		}
		if s == "" {
			*d = 0
			return nil
		}
		parsed, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("parse duration: %w", err)
		}
		*d = wireDuration(parsed)
		return nil
	}
	var n int64
	if err := json.Unmarshal(text, &n); err != nil {
		return err
	}
	*d = wireDuration(n)
	return nil
}

func (d wireDuration) duration() time.Duration { return time.Duration(d) }
