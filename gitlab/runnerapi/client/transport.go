package client

import (
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

const (
	dialTimeout         = 30 * time.Second
	tlsHandshakeTimeout = 10 * time.Second
	idleConnTimeout     = 90 * time.Second
	// A peer that is silent this long with data or a probe outstanding is gone: a NAT forgot the connection, a host died.
	deadPeerTimeout = 45 * time.Second
	// maxIdleConns of a lane: one connection per held watch where HTTP/2 is not spoken.
	maxIdleConns = 512
)

func newTransports(config *tls.Config) [laneCount]*http.Transport {
	var transports [laneCount]*http.Transport
	for lane := range transports {
		transports[lane] = newTransport(config.Clone())
	}
	// Traces are uploads: HTTP/2, with its small frames and windows, costs them at least a quarter more CPU and time
	// (BenchmarkTraceThroughput).
	transports[laneReport].Protocols.SetHTTP2(false)
	return transports
}

func newTransport(config *tls.Config) *http.Transport {
	dialer := &net.Dialer{
		Timeout: dialTimeout,
		KeepAliveConfig: net.KeepAliveConfig{
			Enable:   true,
			Idle:     30 * time.Second,
			Interval: 5 * time.Second,
			Count:    3,
		},
		Control: limitUnacknowledged,
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: tlsHandshakeTimeout,
		MaxIdleConns:        maxIdleConns,
		MaxIdleConnsPerHost: maxIdleConns,
		IdleConnTimeout:     idleConnTimeout,
		Protocols:           protocols,
		// Answers are small or incompressible where it matters, and a limit on decompressed bytes is one more thing to get wrong.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        32 << 10,
		ReadBufferSize:         16 << 10,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 30 * time.Second,
			PingTimeout:     15 * time.Second,
		},
	}
}
