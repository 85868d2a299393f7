// SPDX-License-Identifier: Apache-2.0

// Package handover is how one process of a node gives way to the next one: how
// the next one is started, what the two say to each other, and how descriptors
// pass between them.
//
// The process that runs starts its successor and offers it every socket that it
// listens on, the very same sockets, so that no connection in an accept queue is
// lost. The successor prepares all that can fail, says that it is ready, and
// waits. Only then does the predecessor stop accepting and tell it to take over;
// when the successor serves, the predecessor drains and ends. Until that moment
// either of them may fail, and the one that was there goes on.
//
// Messages are JSON on a SOCK_SEQPACKET pair, one in each packet. Fields and
// kinds are only ever added: the two processes may be of different versions,
// and either may be the newer one.
//
// The package must not know what the sockets are for, nor what a node consists
// of.
package handover
