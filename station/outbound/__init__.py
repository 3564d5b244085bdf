"""What the line tells other systems by itself: verdicts, changes of classes and states of cameras, by HTTP and MQTT."""
