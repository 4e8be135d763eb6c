"""RabbitMQ: everything that speaks pika."""
