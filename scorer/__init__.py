"""The scorer: images in, scores that mean the same on every product out. Knows no Kafka, no Ray, no database."""
