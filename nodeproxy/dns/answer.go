// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"time"

	miekg "github.com/miekg/dns"
)

// maxAnswer bounds what is sent or accepted in one datagram; it is also what
// this server advertises.
const maxAnswer = 4096

// replier makes the answers to one question about the mesh.
type replier struct {
	settings *Settings
	request  *miekg.Msg
	question miekg.Question
}

// addresses answers for a name that the mesh knows. A family or type that it
// doesn't have is an empty success, never NXDOMAIN: that would deny the other
// family as well.
func (r *replier) addresses(vips []netip.Addr) (*miekg.Msg, Result) {
	reply := r.reply()
	for _, vip := range vips {
		header := miekg.RR_Header{Name: r.question.Name, Class: miekg.ClassINET, Ttl: seconds(r.settings.TTL)}
		vip = vip.Unmap()
		switch {
		case vip.Is4() && r.wants(miekg.TypeA):
			header.Rrtype = miekg.TypeA
			reply.Answer = append(reply.Answer, &miekg.A{Hdr: header, A: vip.AsSlice()})
		case vip.Is6() && r.wants(miekg.TypeAAAA):
			header.Rrtype = miekg.TypeAAAA
			reply.Answer = append(reply.Answer, &miekg.AAAA{Hdr: header, AAAA: vip.AsSlice()})
		}
	}
	if len(reply.Answer) == 0 {
		return r.noData(reply)
	}
	return reply, ResultMesh
}

func (r *replier) pointer(name string) (*miekg.Msg, Result) {
	reply := r.reply()
	if !r.wants(miekg.TypePTR) {
		return r.noData(reply)
	}
	reply.Answer = []miekg.RR{&miekg.PTR{
		Hdr: miekg.RR_Header{
			Name: r.question.Name, Rrtype: miekg.TypePTR, Class: miekg.ClassINET, Ttl: seconds(r.settings.TTL),
		},
		Ptr: miekg.Fqdn(name),
	}}
	return reply, ResultMesh
}

// apex answers for the mesh's domain itself.
func (r *replier) apex() (*miekg.Msg, Result) {
	reply := r.reply()
	if !r.wants(miekg.TypeSOA) {
		return r.noData(reply)
	}
	reply.Answer = []miekg.RR{r.soa(r.settings.Domain)}
	return reply, ResultMesh
}

func (r *replier) noName(zone string) (*miekg.Msg, Result) {
	reply := r.reply()
	reply.Rcode = miekg.RcodeNameError
	reply.Ns = []miekg.RR{r.soa(zone)}
	return reply, ResultNoName
}

func (r *replier) noData(reply *miekg.Msg) (*miekg.Msg, Result) {
	zone := r.settings.Domain
	if zone == "" || !miekg.IsSubDomain(zone, r.question.Name) {
		// A name that the mesh took from elsewhere is a zone of its own.
		zone = r.question.Name
	}
	reply.Ns = []miekg.RR{r.soa(zone)}
	return reply, ResultNoData
}

func (r *replier) wants(rrtype uint16) bool {
	if r.question.Qclass != miekg.ClassINET && r.question.Qclass != miekg.ClassANY {
		return false
	}
	return r.question.Qtype == rrtype || r.question.Qtype == miekg.TypeANY
}

// soa makes the record that tells resolvers how long to remember that
// something does not exist: the lesser of its TTL and its minimum, RFC 2308
// section 5.
func (r *replier) soa(zone string) *miekg.SOA {
	ttl := seconds(r.settings.NegativeTTL)
	return &miekg.SOA{
		Hdr: miekg.RR_Header{Name: zone, Rrtype: miekg.TypeSOA, Class: miekg.ClassINET, Ttl: ttl},
		// Nobody transfers the zone, so the serial never needs to change. The
		// reserved names keep anybody from looking for a server or a mailbox.
		Ns: "ns.invalid.", Mbox: "hostmaster.invalid.", Serial: 1,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}
}

func (r *replier) reply() *miekg.Msg {
	reply := new(miekg.Msg)
	reply.SetReply(r.request)
	reply.Authoritative = true
	reply.RecursionAvailable = true
	if opt := r.request.IsEdns0(); opt != nil {
		reply.SetEdns0(maxAnswer, opt.Do())
	}
	return reply
}

// pack encodes the answer to a question about the mesh.
func (s *Server) pack(q *query, request, reply *miekg.Msg) []byte {
	if opt := request.IsEdns0(); opt != nil && opt.Version() != 0 {
		// RFC 6891 section 6.1.3.
		reply.Answer, reply.Ns = nil, nil
		reply.Rcode = miekg.RcodeBadVers
	}
	reply.Truncate(q.size)
	m, err := reply.Pack()
	if err != nil || len(m) > q.size {
		s.options.Logger.Error("encode DNS answer", "name", reply.Question[0].Name, "error", err)
		return errorAnswer(q.raw, q.question, miekg.RcodeServerFailure)
	}
	return m
}

func seconds(d time.Duration) uint32 { return uint32(max(d/time.Second, 0)) }
