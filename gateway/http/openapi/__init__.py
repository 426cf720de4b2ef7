"""The API's description of itself: OpenAPI, made from the routes and the running catalog."""
