package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	headerPatience = 10 * time.Second
	writePatience  = time.Minute
	// maxAtOnce bounds the answers that are made at the same time.
	maxAtOnce = 4
)

// Serve answers GET /metrics on l until ctx ends. Whoever reaches l may read: figures and the paths of projects, no
// secrets.
func Serve(ctx context.Context, l net.Listener, c prometheus.Collector) error {
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("set up the metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxAtOnce}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerPatience, ReadTimeout: headerPatience, WriteTimeout: writePatience}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_ = server.Close()
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the metrics on %s: %w", l.Addr(), err)
	}
	return nil
}
