// Command watermill passes orders through Watermill's SQL queue. A subscription keeps a connection
// while its handler runs. A handler that uses that one's transaction needs no second connection.
// "watermill migrate" creates the queue; see the package documentation of examples for the rest.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"golang.org/x/sync/errgroup"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	sem, err := semaphore.Open(ctx, os.Getenv("REDIS_URL"),
		semaphore.Config{Name: "orders-db", Capacity: 5})
	if err != nil {
		return err
	}
	defer sem.Close()

	pool, err := passpool.New(ctx, os.Getenv("DATABASE_URL"), sem, passbuddy.Config{})
	if err != nil {
		return err
	}
	defer pool.Close()
	db, logger := wsql.BeginnerFromPgx(pool), watermill.NopLogger{}
	subscriber, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
		SchemaAdapter:  wsql.PostgreSQLQueueSchema{},
		OffsetsAdapter: wsql.PostgreSQLQueueOffsetsAdapter{DeleteOnAck: true},
		PollInterval:   100 * time.Millisecond,
	}, logger)
	if err != nil {
		return err
	}
	defer subscriber.Close()
	if len(os.Args) > 1 && os.Args[1] == "migrate" {
		return subscriber.SubscribeInitialize("orders")
	}
	publisher, err := wsql.NewPublisher(db,
		wsql.PublisherConfig{SchemaAdapter: wsql.PostgreSQLQueueSchema{}}, logger)
	if err != nil {
		return err
	}
	messages, err := subscriber.Subscribe(ctx, "orders")
	if err != nil {
		return err
	}

	var group errgroup.Group
	group.Go(func() error { return placeOrders(messages) })
	for worker := range 8 {
		group.Go(func() error {
			item, err := json.Marshal(fmt.Sprint("book ", worker))
			if err != nil {
				return err
			}
			return publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), item))
		})
	}
	return group.Wait() // until interrupted: Subscribe's context ends the messages
}

// placeOrders handles the messages.
func placeOrders(messages <-chan *message.Message) error {
	for m := range messages {
		var item string
		if err := json.Unmarshal(m.Payload, &item); err != nil {
			return err
		}
		tx, ok := wsql.TxFromContext(m.Context())
		if !ok {
			return errors.New("the message has no transaction")
		}
		if _, err := tx.ExecContext(m.Context(),
			"insert into orders (item) values ($1)", item); err != nil {
			m.Nack()
			continue
		}
		m.Ack()
	}
	return nil
}
