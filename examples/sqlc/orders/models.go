package orders

type Order struct {
	ID   int64
	Item string
	Paid bool
}
