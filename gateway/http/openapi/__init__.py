"""What the API says of itself: OpenAPI, made from the routes and the running catalog."""
