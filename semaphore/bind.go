package semaphore

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"
)

// HandlerOptions say what Handler does with the permit around a request. The zero value leaves
// acquiring to the code inside (Use, Do or Bind) and releases at the end.
type HandlerOptions struct {
	// AcquireOnStart acquires the permit, or uses the lease it has, before the request is served.
	// If that fails the request is answered with 503 Service Unavailable and a Retry-After.
	AcquireOnStart bool
	// KeepOnEnd leaves the permit held when the request has been served.
	KeepOnEnd bool
}

// Handler serves requests with the permit. While several requests overlap they share it, and the
// last to end releases it. The request's context ends with cause ErrLost if the lease is lost.
func (p *Permit) Handler(next http.Handler, opts HandlerOptions) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if err := p.enter(ctx, opts.AcquireOnStart); err != nil {
			retry := max(1, int(p.s.cfg.RetryInterval/time.Second))
			w.Header().Set("Retry-After", strconv.Itoa(retry))
			http.Error(w, http.StatusText(http.StatusServiceUnavailable),
				http.StatusServiceUnavailable)
			if !errors.Is(err, context.Canceled) {
				p.s.cfg.Logger.Warn("request refused: no permit",
					"semaphore", p.s.base, "error", err)
			}
			return
		}
		defer func() {
			if err := p.leave(ctx, opts.KeepOnEnd); err != nil {
				p.s.cfg.Logger.Warn("release after a request failed, retried in the background",
					"semaphore", p.s.base, "error", err)
			}
		}()
		inner, stop := p.whileHeld(ctx)
		defer stop()
		next.ServeHTTP(w, r.WithContext(inner))
	})
}

// BindOptions say what Bind does with the permit around a call. The zero value releases it at the
// end.
type BindOptions struct {
	// KeepOnEnd leaves the permit held when the bound function returns, so that the next call costs
	// no round trip.
	KeepOnEnd bool
}

// Bind returns fn with the permit around it: each call uses the permit, runs fn, and releases it,
// as Do does.
func Bind[A, R any](
	p *Permit, fn func(context.Context, A) (R, error), opts BindOptions,
) func(context.Context, A) (R, error) {
	return func(ctx context.Context, a A) (R, error) {
		var r R
		err := p.run(ctx, opts.KeepOnEnd, func(ctx context.Context) (err error) {
			r, err = fn(ctx, a)
			return err
		})
		return r, err
	}
}
