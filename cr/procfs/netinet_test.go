package procfs

import (
	"net"
	"net/netip"
	"slices"
	"testing"
)

const (
	tcpText = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                  \n" +
		"   0: 0100007F:07E8 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 539 1 0000000083d62b8b 100 0 0 10 0\n" +
		"  10: 0201A8C0:1F90 0101A8C0:C350 06 0000000A:00000014 03:00000B2C 00000000  1000        0 0 3 0000000083d62b8b\n"
	udp6Text = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n" +
		" 1234: B80D01200000000067452301EFCDAB89:0035 0000000000000000FFFF00000100007F:0044 01 00000000:00000000 00:00000000 00000000  4294967294        0 18446744073709551615 2 0 0\n"
)

func TestParseInet(t *testing.T) {
	checkParse(t, ParseInet, []parseCase[[]InetSocket]{
		{"tcp", tcpText, []InetSocket{
			{netip.MustParseAddrPort("127.0.0.1:2024"), netip.MustParseAddrPort("0.0.0.0:0"), TCPListen, 0, 1, 0, 539},
			{
				netip.MustParseAddrPort("192.168.1.2:8080"), netip.MustParseAddrPort("192.168.1.1:50000"), TCPTimeWait,
				10, 20, 1000, 0,
			},
		}},
		{"udp6", udp6Text, []InetSocket{{
			netip.MustParseAddrPort("[2001:db8::123:4567:89ab:cdef]:53"),
			netip.MustParseAddrPort("[::ffff:127.0.0.1]:68"),
			TCPEstablished, 0, 0, 4294967294, 1<<64 - 1,
		}}},
		{"nothing", "", nil},
	})
	checkRefused(t, ParseInet, "x\n", tcpText+"\n", tcpText+"x\n", replaced(t, tcpText, "0100007F:", "0100007:"),
		replaced(t, tcpText, ":07E8", ":7E8"), replaced(t, tcpText, "0201A8C0", "0201A8CX"), replaced(t, tcpText,
			" 0A ", " 1FF "))
}

func TestReadInet(t *testing.T) {
	pid := linux(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the test is over
	socks, err := ReadNetTCP(pid)
	if err != nil {
		t.Fatal(err)
	}
	want := netip.MustParseAddrPort(l.Addr().String())
	if !slices.ContainsFunc(socks,
		func(s InetSocket) bool { return s.Local == want && s.State == TCPListen && s.Inode != 0 }) {
		t.Errorf("%v is not in %v", want, socks)
	}
	for _, read := range []func(int) ([]InetSocket, error){ReadNetTCP6, ReadNetUDP, ReadNetUDP6} {
		if _, err := read(pid); err != nil {
			t.Error(err)
		}
	}
}

func FuzzParseInet(f *testing.F) { fuzz(f, ParseInet, tcpText, udp6Text) }
