"""The interface for programs, `/api/v1`: resources, paging, ETags, and errors as problem documents."""
