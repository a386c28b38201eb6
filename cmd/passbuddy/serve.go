package main

import (
	"github.com/spf13/cobra"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/operate"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/serve"
)

func serveCommand(t *operate.Tool) *cobra.Command {
	var opts serve.Options
	cmd := t.Command(cobra.Command{
		Use:   "serve",
		Short: "Serve a page that shows the fleet live",
		Long: `Serve a page that shows the fleet live: what it holds and who waits, over time, and
what changed. It is read-only, and on this machine alone, unless flags say otherwise.

Readers are not authenticated: for another address than loopback, put your own authentication and
TLS in front. With --allow-control the page can set the capacity, pause, resume and evict. Each of
these needs the token in ` + serve.TokenVariable + ` or --token-file, and the name of the semaphore,
typed.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string) error {
		client, end, err := t.Open()
		if err != nil {
			return err
		}
		defer end()
		opts.Client, opts.Postgres = client, t.Postgres
		opts.Prefix, opts.Name = t.Target.Prefix, t.Target.Name
		return serve.Run(cmd.Context(), opts, cmd.OutOrStdout())
	})
	flags := cmd.Flags()
	flags.StringVar(&opts.Listen, "listen", serve.DefaultListen, "`address` of the page")
	flags.BoolVar(&opts.AllowControl, "allow-control", false,
		"let those act who know the token")
	flags.StringVar(&opts.TokenFile, "token-file", "", "`file` with the token of --allow-control "+
		"(default: the variable "+serve.TokenVariable+")")
	return cmd
}
